#include "decoding_arguments.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dispatch.h"
#include "packed.h"
#include "plan.h"

namespace seq2seq_ext {

void check_number(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    fail(name, ": expected a number from ", low, " to ", high, ", got ", value);
}

DecodingGiven::DecodingGiven(ArgumentReader& read) {
  take_weights(read);
  take_sources(read);
  take_layout(read);
}

void DecodingGiven::take_weights(ArgumentReader& read) {
  weights = read.tensors();
  packed = read.tensor();
  turn = read.integer();
  checked = read.integer();
}

void DecodingGiven::take_sources(ArgumentReader& read) {
  gates = read.optional_tensor();
  pieces = read.optional_tensor();
  keys = read.optional_tensor();
  values = read.optional_tensor();
  source_lengths = read.optional_tensor();
}

void DecodingGiven::take_layout(ArgumentReader& read) {
  cell = read.integer();
  num_layers = read.integer();
  source_features = read.integer();
  heads = read.integer();
  residual = read.integer();
  query_first = read.boolean();
  scale = read.number();
}

DecodingArguments::DecodingArguments(const DecodingGiven& given)
    : weights(given.weights, given.cell, given.num_layers, given.source_features), given_(given) {
  const DecoderTensors& w = weights;
  constexpr int64_t kMost = int64_t{1} << 30;
  check_number("turn", given.turn, 0, std::numeric_limits<int64_t>::max());
  check_number("checked", given.checked, 1, kMost);
  check_number("heads", given.heads, 1, kMost);
  check_number("residual", given.residual, 0, w.L - 1);
  if (!std::isfinite(given.scale)) fail("scale: expected a finite number, got ", given.scale);
  packed = packed_block(weights, View(given.packed), given.turn, given.checked);

  const View keys(given.keys);
  if (bool(given.gates) != (w.X > 0))
    fail("gates: expected a tensor where source_features is above 0, and only there");
  if (given.pieces && w.U == 0) fail("pieces: expected None without w_state, got a tensor");
  if (bool(keys) != bool(given.values) || bool(keys) != bool(given.source_lengths))
    fail("keys, values, source_lengths: expected all three or none");
  if (!keys && w.C > 0) fail("keys: expected a tensor, as the decoder attends");
  if (keys && w.C == 0) fail("values: expected None, as nothing reads the context");
  if (keys && keys.dim != 3) fail("keys: expected shape (M, S, ", w.A, "), got ", keys);
  if (keys) M = keys.size[0], S = keys.size[1];
  if (keys && (w.A % given.heads != 0 || w.C % given.heads != 0))
    fail("heads: expected a divisor of ", w.A, " and of ", w.C, ", got ", given.heads);
  if (w.has(DecoderRole::kV) && given.heads != 1)
    fail("heads: expected 1 with v, got ", given.heads);
  const int64_t fed = given.query_first || w.O == 0 ? w.C : w.O;
  if (w.F != 0 && w.F != fed)
    fail("w_ih[0]: expected ", fed, " columns for what is fed, got ", w.F);
}

void DecodingArguments::take_rows(int64_t rows, int64_t sources) {
  const DecoderTensors& w = weights;
  M = sources;
  gates_ = take("gates", given_.gates, {{rows, num_gates(w.cell) * w.H}, 2});
  pieces_ = take("pieces", given_.pieces, {{rows, 2 * w.U}, 2});
  keys_ = take("keys", given_.keys, {{M, S, w.A}, 3});
  values_ = take("values", given_.values, {{M, S, w.C}, 3});
  source_ = weights.integers("source_lengths", View(given_.source_lengths), {{M}, 1}, S);
}

View DecodingArguments::take(const char* name, const Handle& given, const Shape& shape) {
  const View view(given);
  if (view) weights.check(name, view, shape);
  return weights.contiguous(view);
}

Plan DecodingArguments::plan(int64_t steps, int64_t rows, int64_t shares) const {
  const DecoderTensors& w = weights;
  const int64_t width = num_gates(w.cell) * w.H, features = w.O > 0 ? w.O : w.U > 0 ? w.U : w.H;
  DecodingProblem problem{
      {w.cell, false, packed.type, steps, rows, steps * rows, std::max<int64_t>(w.F, 1), w.H, w.H,
       w.L, 1, static_cast<size_t>(element_size(w.dtype)), active_kernels().vector_bytes, true},
      shares,
      0,
      0};
  const auto count = [&](bool there, int64_t rows, int64_t columns) {
    problem.weights += there ? double(rows) * double(columns) : 0;
    problem.products += there ? 1 : 0;
  };
  for (int64_t l = 0; l < w.L; ++l) {
    count(l > 0 || w.F > 0, width, l > 0 ? w.H : w.F);
    count(true, width, w.H);
  }
  count(w.has(DecoderRole::kQuery), w.A, w.H);
  count(w.O > 0, w.O, w.C + w.H);
  count(w.U > 0, 2 * w.U, w.H);
  count(w.has(DecoderRole::kContext), 2 * w.U, w.C);
  count(w.R > 0, w.R, features);
  count(true, w.V, w.R > 0 ? w.R : features);
  return make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
}

}  // namespace seq2seq_ext
