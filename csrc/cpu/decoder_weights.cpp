#include "decoder_weights.h"

namespace seq2seq_ext {
namespace {

constexpr int64_t kRoles = sizeof kDecoderRoles / sizeof *kDecoderRoles;
static_assert(kRoles == static_cast<int64_t>(DecoderRole::kVocabBias) + 1);
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
  using Role = DecoderRole;
  const auto name_of = [](Role role) { return kDecoderRoles[static_cast<int>(role)]; };
  const auto need = [&](Role role, const Shape& shape) { check(name_of(role), of(role), shape); };
  const auto maybe = [&](Role role, const Shape& shape) {
    if (has(role)) need(role, shape);
  };
  const auto rows = [&](Role role, int64_t dim) {
    if (!has(role)) return int64_t{0};
    if (of(role).dim != dim) fail(name_of(role), ": expected ", dim, " dimensions, got ", of(role));
    return of(role).size[0];
  };
  const auto columns = [&](Role role) { return rows(role, 2) > 0 ? of(role).size[1] : int64_t{0}; };
  A = has(Role::kQuery) ? rows(Role::kQuery, 2) : has(Role::kV) ? rows(Role::kV, 1) : H;
  maybe(Role::kQuery, {{A, H}, 2});
  maybe(Role::kV, {{A}, 1});
  maybe(Role::kGain, {{}, 0});
  maybe(Role::kCoverage, {{A}, 1});
  if (!has(Role::kV) && (has(Role::kGain) || has(Role::kCoverage)))
    fail("v: expected a tensor beside gain or w_coverage, got none");
  U = rows(Role::kState, 2) / 2;
  O = rows(Role::kOut, 2);
  if (O > 0 && U > 0) fail("w_state: expected none beside w_out, got ", of(Role::kState));
  // Whichever reads the context tells its size.
  C = O > 0 ? columns(Role::kOut) - H : columns(Role::kContext);
  if (C == 0 && F > 0) C = F;
  if (C < 0) fail("w_out: expected shape (O, C + ", H, "), got ", of(Role::kOut));
  maybe(Role::kOut, {{O, C + H}, 2});
  maybe(Role::kOutBias, {{O}, 1});
  if (U > 0) {
    need(Role::kState, {{2 * U, H}, 2});
    need(Role::kToken, {{2 * U, E}, 2});
  }
  maybe(Role::kStateBias, {{2 * U}, 1});
  maybe(Role::kContext, {{2 * U, C}, 2});
  for (const Role role : {Role::kStateBias, Role::kToken, Role::kContext})
    if (U == 0 && has(role)) fail(name_of(role), ": expected none without w_state, got ", of(role));
  if (O == 0 && has(Role::kOutBias))
    fail("b_out: expected none without w_out, got ", of(Role::kOutBias));
  const int64_t features = O > 0 ? O : U > 0 ? U : H;
  R = rows(Role::kRank, 2);
  maybe(Role::kRank, {{R, features}, 2});
  need(Role::kVocab, {{V, R > 0 ? R : features}, 2});
  maybe(Role::kVocabBias, {{V}, 1});
}

std::string DecoderTensors::name(int64_t i) const {
  if (i == 0) return "embedding";
  const int64_t of_layers = i - 1;
  if (of_layers < 4 * L)
    return std::string(kLayerRoles[of_layers % 4]) + "[" + std::to_string(of_layers / 4) + "]";
  return kDecoderRoles[of_layers - 4 * L];
}

}  // namespace seq2seq_ext
