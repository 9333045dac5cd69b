#include "decoder_weights.h"

#include <cstring>

namespace seq2seq_ext {
namespace {

constexpr int64_t kRoles = sizeof kDecoderRoles / sizeof *kDecoderRoles;
constexpr const char* kLayerRoles[] = {"w_ih", "w_hh", "b_ih", "b_hh"};

}  // namespace

DecoderTensors::DecoderTensors(const std::vector<Handle>& given, int64_t code, int64_t num_layers,
                               int64_t source_features)
    : Common(given.empty() ? View() : View(given[0]), "embedding"),
      cell(cell_of(code)),
      L(num_layers),
      X(source_features) {
  if (L < 1) fail("num_layers: expected at least 1, got ", L);
  if (X < 0) fail("source_features: expected at least 0, got ", X);
  const int64_t expected = 1 + 4 * L + kRoles, count = static_cast<int64_t>(given.size());
  if (count != expected)
    fail("weights: expected ", expected, " tensors for ", L, " layers, got ", count);
  if (dtype != computed) fail("embedding: expected dtype Float or Double");
  for (const Handle& handle : given) weights.emplace_back(handle);

  const View& embedding = weights[0];
  if (embedding.dim != 2 || embedding.numel() == 0)
    fail("embedding: expected shape (V, E), got ", embedding);
  V = embedding.size[0], E = embedding.size[1];
  const View& first = weights[1];
  const int64_t G = num_gates(cell);
  if (first.dim != 2 || first.numel() == 0 || first.size[0] % G != 0)
    fail("w_ih[0]: expected shape (", G, " * H, inputs), got ", first);
  H = first.size[0] / G;
  F = first.size[1] - E - X;
  if (F < 0) fail("w_ih[0]: expected at least ", E + X, " columns, got ", first);
  const auto need = [&](int64_t i, const Shape& shape) {
    check(name(i).c_str(), weights[i], shape);
  };
  for (int64_t l = 0; l < L; ++l) {
    const int64_t at = 1 + 4 * l;
    need(at, {{G * H, l == 0 ? E + X + F : H}, 2});
    need(at + 1, {{G * H, H}, 2});
    for (int64_t i = at + 2; i < at + 4; ++i)
      if (present(i)) need(i, {{G * H}, 1});
    w_ih_.push_back(array(at)), w_hh_.push_back(array(at + 1));
    b_ih_.push_back(array(at + 2)), b_hh_.push_back(array(at + 3));
  }
  w_in_ = w_ih_;
  w_in_[0] = F == 0 ? nullptr : static_cast<const char*>(w_ih_[0]) + (E + X) * element_size(dtype);
  check_head();
  for (int64_t i = 0; i < count; ++i) {
    if (present(i) && !is_contiguous(weights[i])) fail(name(i), ": expected a contiguous tensor");
  }
}

void DecoderTensors::check_head() {
  const auto need = [&](const char* name, const Shape& shape) { check(name, named(name), shape); };
  const auto maybe = [&](const char* name, const Shape& shape) {
    if (has(name)) need(name, shape);
  };
  const auto rows = [&](const char* name, int64_t dim) {
    if (!has(name)) return int64_t{0};
    if (named(name).dim != dim) fail(name, ": expected ", dim, " dimensions, got ", named(name));
    return named(name).size[0];
  };
  const auto columns = [&](const char* name) {
    return rows(name, 2) > 0 ? named(name).size[1] : int64_t{0};
  };
  A = has("w_query") ? rows("w_query", 2) : has("v") ? rows("v", 1) : H;
  maybe("w_query", {{A, H}, 2});
  maybe("v", {{A}, 1});
  maybe("gain", {{}, 0});
  maybe("w_coverage", {{A}, 1});
  if (!has("v") && (has("gain") || has("w_coverage")))
    fail("v: expected a tensor beside gain or w_coverage, got none");
  U = rows("w_state", 2) / 2;
  O = rows("w_out", 2);
  if (O > 0 && U > 0) fail("w_state: expected none beside w_out, got ", named("w_state"));
  // Whichever reads the context tells its size.
  C = O > 0 ? columns("w_out") - H : columns("w_context");
  if (C == 0 && F > 0) C = F;
  if (C < 0) fail("w_out: expected shape (O, C + ", H, "), got ", named("w_out"));
  maybe("w_out", {{O, C + H}, 2});
  maybe("b_out", {{O}, 1});
  if (U > 0) {
    need("w_state", {{2 * U, H}, 2});
    need("w_token", {{2 * U, E}, 2});
  }
  maybe("b_state", {{2 * U}, 1});
  maybe("w_context", {{2 * U, C}, 2});
  for (const char* name : {"b_state", "w_token", "w_context"})
    if (U == 0 && has(name)) fail(name, ": expected none without w_state, got ", named(name));
  if (O == 0 && has("b_out")) fail("b_out: expected none without w_out, got ", named("b_out"));
  const int64_t features = O > 0 ? O : U > 0 ? U : H;
  R = rows("w_rank", 2);
  maybe("w_rank", {{R, features}, 2});
  need("w_vocab", {{V, R > 0 ? R : features}, 2});
  maybe("b_vocab", {{V}, 1});
}

std::string DecoderTensors::name(int64_t i) const {
  if (i == 0) return "embedding";
  const int64_t of_layers = i - 1;
  if (of_layers < 4 * L)
    return std::string(kLayerRoles[of_layers % 4]) + "[" + std::to_string(of_layers / 4) + "]";
  return kDecoderRoles[of_layers - 4 * L];
}

int64_t DecoderTensors::index(const char* name) const {
  int64_t role = 0;
  while (std::strcmp(kDecoderRoles[role], name) != 0) ++role;
  return 1 + 4 * L + role;
}

}  // namespace seq2seq_ext
