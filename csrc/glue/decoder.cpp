#include "decoder.h"

#include <cmath>

namespace seq2seq_ext {

DecoderGiven::DecoderGiven(ArgumentReader& read)
    : x(read.tensor()),
      weights(read.tensors()),
      bias(read.optional_tensor()),
      b_hn(read.optional_tensor()),
      h_0(read.optional_tensor()),
      c_0(read.optional_tensor()),
      feed_0(read.optional_tensor()),
      coverage_0(read.optional_tensor()),
      keys(read.tensor()),
      values(read.tensor()),
      w_query(read.optional_tensor()),
      v(read.optional_tensor()),
      w_coverage(read.optional_tensor()),
      w_out(read.optional_tensor()),
      b_out(read.optional_tensor()),
      dropout_mask(read.optional_tensor()),
      lengths(read.optional_tensor()),
      source_lengths(read.optional_tensor()),
      memory(read.optional_tensor()),
      cell(read.integer()),
      num_layers(read.integer()),
      heads(read.integer()),
      residual(read.integer()),
      query_first(read.boolean()),
      scale(read.number()) {}

DecoderArguments::DecoderArguments(const DecoderGiven& given)
    : DecoderArguments(given, View(given.x)) {}

DecoderArguments::DecoderArguments(const DecoderGiven& given, const View& x_given)
    : Common(x_given),
      cell(cell_of(given.cell)),
      L(given.num_layers),
      heads(given.heads),
      residual(given.residual),
      additive(bool(given.v)),
      query_first(given.query_first),
      covers(bool(given.w_coverage)),
      combines(bool(given.w_out)),
      lengths(given.lengths),
      source_lengths(given.source_lengths),
      memory(given.memory),
      x(x_given),
      bias(given.bias),
      b_hn(given.b_hn),
      h_0(given.h_0),
      c_0(given.c_0),
      feed_0(given.feed_0),
      coverage_0(given.coverage_0),
      keys(given.keys),
      values(given.values),
      w_query(given.w_query),
      v(given.v),
      w_coverage(given.w_coverage),
      w_out(given.w_out),
      b_out(given.b_out),
      dropout_mask(given.dropout_mask),
      scale(given.scale) {
  const int64_t G = num_gates(cell);
  if (L < 1) fail("num_layers: expected at least 1, got ", L);
  if (x.dim != 3 || x.size[2] % G != 0 || x.size[2] == 0)
    fail("x: expected shape (T, B, ", G, " * H), got ", x);
  T = x.size[0], B = x.size[1], H = x.size[2] / G;
  if (T == 0) fail("x: expected at least one step, got shape ", x);
  if (keys.dim != 3 || keys.size[2] == 0) fail("keys: expected shape (M, S, A), got ", keys);
  M = keys.size[0], S = keys.size[1], A = keys.size[2];
  if (values.dim != 3 || values.size[2] == 0)
    fail("values: expected shape (", M, ", ", S, ", C), got ", values);
  C = values.size[2];
  if (combines) {
    if (w_out.dim != 2 || w_out.size[0] == 0)
      fail("w_out: expected shape (O, ", C + H, "), got ", w_out);
    if (query_first) fail("w_out: expected None with query_first, got a tensor");
  }
  O = combines ? w_out.size[0] : 0;
  F = combines ? O : C;
  if (heads < 1 || A % heads != 0 || C % heads != 0)
    fail("heads: expected a divisor of ", A, " (features of keys) and of ", C,
         " (features of values), got ", heads);
  if (additive && heads != 1) fail("heads: expected 1 with v, got ", heads);
  if (covers && !additive) fail("w_coverage: expected None without v, got a tensor");
  if (coverage_0 && !covers) fail("coverage_0: expected None without w_coverage, got a tensor");
  if (residual < 0 || residual >= std::max<int64_t>(L, 1))
    fail("residual: expected a layer from 1 to ", L - 1, ", or 0 for none, got ", residual);
  if (!std::isfinite(scale)) fail("scale: expected a finite number, got ", scale);
  if (query_first && feed_0) fail("feed_0: expected None with query_first, got a tensor");
  if (!has_cell() && c_0) fail("c_0: expected None for the cell ", cell, ", got a tensor");
  if (b_hn && cell != Cell::kGru)
    fail("b_hn: expected None for the cell ", cell,
         ", got a tensor; GRUs whose reset gate comes after the product have one");
  if (b_out && !combines) fail("b_out: expected None without w_out, got a tensor");
  if (!w_query && A != H)
    fail("w_query: expected a tensor, as keys have ", A, " features and the state ", H);
  if (dropout_mask && L == 1) fail("dropout_mask: expected None for one layer, got a tensor");

  take_weights(given.weights);
  const auto optional = [&](const char* name, const View& view, const Shape& shape) {
    if (view) check(name, view, shape);
  };
  check("keys", keys, {{M, S, A}, 3});
  check("values", values, {{M, S, C}, 3});
  optional("bias", bias, {{L, G * H}, 2});
  optional("b_hn", b_hn, {{L, H}, 2});
  optional("h_0", h_0, {{L, B, H}, 3});
  optional("c_0", c_0, {{L, B, H}, 3});
  optional("feed_0", feed_0, {{B, F}, 2});
  optional("coverage_0", coverage_0, {{B, S}, 2});
  optional("w_query", w_query, {{A, H}, 2});
  optional("v", v, {{A}, 1});
  optional("w_coverage", w_coverage, {{A}, 1});
  optional("w_out", w_out, {{O, C + H}, 2});
  optional("b_out", b_out, {{O}, 1});
  optional("dropout_mask", dropout_mask, {{L - 1, T, B, H}, 4});
  if (memory && M == 0 && B > 0) fail("keys: expected a sequence for memory to name, got ", keys);
  lengths = integers("lengths", lengths, {{B}, 1}, T);
  source_lengths = integers("source_lengths", source_lengths, {{M}, 1}, S);
  memory = integers("memory", memory, {{B}, 1}, M - 1);
  if (!memory && M != B)
    fail("keys: expected ", B, " sequences as x has, got ", M, "; memory would say which is whose");
  for (View* view : {&x, &bias, &b_hn, &h_0, &c_0, &feed_0, &coverage_0, &keys, &values, &w_query,
                     &v, &w_coverage, &w_out, &b_out, &dropout_mask})
    *view = contiguous(widened(*view));
}

void DecoderArguments::take_weights(const std::vector<Handle>& weights) {
  const auto count = static_cast<int64_t>(weights.size());
  if (count != 2 * L) fail("weights: expected 2 tensors for each of ", L, " layers, got ", count);
  for (int64_t i = 0; i < count; ++i) {
    const View weight(weights[i]);
    const std::string name = "weights[" + std::to_string(i) + "]";
    check(name.c_str(), weight, {{gates(), i == 0 ? F : H}, 2});
    (i % 2 == 0 ? w_in : w_hh).push_back(contiguous(widened(weight)).data());
  }
}

// ---- results ------------------------------------------------------------------------------------

namespace {

constexpr Shape kNothing{{0}, 1};

// The shapes of the first eight results.
struct ResultShapes {
  Shape shape[8];

  explicit ResultShapes(const DecoderArguments& a)
      : shape{{{a.T, a.B, a.H}, 3},
              {{a.T, a.B, a.C}, 3},
              {{a.T, a.B, a.heads, a.S}, 4},
              a.combines ? Shape{{a.T, a.B, a.O}, 3} : kNothing,
              {{a.L, a.B, a.H}, 3},
              a.has_cell() ? Shape{{a.L, a.B, a.H}, 3} : kNothing,
              {{a.B, a.F}, 2},
              a.covers ? Shape{{a.B, a.S}, 2} : kNothing} {}
};

// The shapes of what forward keeps.
struct KeptShapes {
  Shape shape[6];

  explicit KeptShapes(const DecoderArguments& a)
      : shape{{{a.L, a.T * a.B, kept_slots(a.cell), a.H}, 4},
              {{a.L, a.T * a.B, a.H}, 3},
              a.cell == Cell::kGruResetBefore ? Shape{{a.L, a.T * a.B, a.H}, 3} : kNothing,
              {{a.L - 1, a.T * a.B, a.H}, 3},
              {{a.T * a.B, a.A}, 2},
              a.covers ? Shape{{a.T * a.B, a.S}, 2} : kNothing} {}
};

constexpr const char* kResultNames[] = {"z",   "context", "alignments", "attentional",
                                        "h_n", "c_n",     "feed_n",     "coverage_n"};
constexpr const char* kKeptNames[] = {"step", "h_in", "inner", "below", "query", "coverage"};

}  // namespace

DecoderOutputs::DecoderOutputs(const DecoderArguments& a, bool save) : dtype(a.dtype) {
  const ResultShapes results(a);
  Handle* const out[] = {&z, &context, &alignments, &attentional, &h_n, &c_n, &feed_n, &coverage_n};
  for (int i = 0; i < 8; ++i) *out[i] = empty(results.shape[i], a.computed, a.device);
  const KeptShapes kept(a);
  Handle* const left[] = {&step, &h_in, &inner, &below, &query, &coverage};
  for (int i = 0; i < 6; ++i)
    *left[i] = empty(save ? kept.shape[i] : kNothing, a.computed, a.device);
}

void DecoderOutputs::put(StableIValue* stack) && {
  int64_t i = 0;
  for (Handle* tensor : {&z, &context, &alignments, &attentional, &h_n, &c_n, &feed_n, &coverage_n})
    stack[i++] = result(in_dtype(std::move(*tensor), dtype));
  for (Handle* tensor : {&step, &h_in, &inner, &below, &query, &coverage})
    stack[i++] = result(std::move(*tensor));
}

DecoderCotangents::DecoderCotangents(ArgumentReader& read) {
  for (Handle& cotangent : given) cotangent = read.optional_tensor();
  for (Handle* tensor :
       {&context, &alignments, &attentional, &step, &h_in, &inner, &below, &query, &coverage})
    *tensor = read.tensor();
}

void DecoderCotangents::check(DecoderArguments& a) {
  if (a.memory) fail("memory: expected None for a call that is differentiated");
  const ResultShapes shapes(a);
  for (int i = 0; i < 8; ++i) {
    const std::string name = std::string("d_") + kResultNames[i];
    d[i] = View(given[i]);
    if (d[i]) a.check(name.c_str(), d[i], shapes.shape[i]);
    d[i] = a.contiguous(a.widened(d[i]));
  }
  const Handle* const left[] = {&context, &alignments, &attentional};
  for (int i = 0; i < 3; ++i) {
    results[i] = View(*left[i]);
    a.check(kResultNames[i + 1], results[i], shapes.shape[i + 1]);
    results[i] = a.contiguous(a.widened(results[i]));
  }
  const KeptShapes kept_shapes(a);
  const Handle* const kept[] = {&step, &h_in, &inner, &below, &query, &coverage};
  for (int i = 0; i < 6; ++i) {
    const View view(*kept[i]);
    a.check_kept(kKeptNames[i], view, kept_shapes.shape[i]);
    if (!is_contiguous(view)) fail(kKeptNames[i], ": expected a contiguous tensor, as it was left");
  }
}

DecoderGradients::DecoderGradients(const DecoderArguments& a) {
  const auto make = [&](bool wanted, const Shape& shape) {
    return empty(wanted ? shape : kNothing, a.computed, a.device);
  };
  const int64_t N = a.T * a.B, width = a.gates();
  gates = make(true, {{a.L, a.T, a.B, width}, 4});
  sum = make(a.cell == Cell::kGru, {{a.L, a.T, a.B, width}, 4});
  query = make(true, {{N, a.A}, 2});
  energy = make(!a.additive, {{a.T, a.B, a.heads, a.S}, 4});
  context = make(true, {{a.T, a.B, a.C}, 3});
  out = make(a.combines, {{N, a.O}, 2});
  keys = make(a.additive, {{a.B, a.S, a.A}, 3});
  v = make(a.additive, {{a.B, a.A}, 2});
  w_coverage = make(a.covers, {{a.B, a.A}, 2});
  h_0 = make(true, {{a.L, a.B, a.H}, 3});
  c_0 = make(a.has_cell(), {{a.L, a.B, a.H}, 3});
  feed_0 = make(true, {{a.B, a.F}, 2});
  coverage_0 = make(a.covers, {{a.B, a.S}, 2});
}

void DecoderGradients::put(StableIValue* stack) && {
  int64_t i = 0;
  for (Handle* tensor : {&gates, &sum, &query, &energy, &context, &out, &keys, &v, &w_coverage,
                         &h_0, &c_0, &feed_0, &coverage_0})
    stack[i++] = result(std::move(*tensor));
}

}  // namespace seq2seq_ext
