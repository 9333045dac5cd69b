#include "recurrence.h"

#include <cmath>
#include <limits>

namespace seq2seq_ext {

RecurrenceGiven::RecurrenceGiven(ArgumentReader& read)
    : x(read.tensor()),
      w_hh(read.tensor()),
      b_hn(read.optional_tensor()),
      w_hr(read.optional_tensor()),
      h_0(read.optional_tensor()),
      c_0(read.optional_tensor()),
      h_mask(read.optional_tensor()),
      peephole(read.optional_tensor()),
      norm_hh(read.optional_tensor()),
      norm_c(read.optional_tensor()),
      bias_c(read.optional_tensor()),
      seed(read.optional_tensor()),
      lengths(read.optional_tensor()),
      batch_sizes(read.optional_tensor()),
      resets(read.optional_tensor()),
      cell(read.integer()),
      reverse(read.boolean()),
      hard_sigmoid(read.boolean()),
      zoneout_h(read.number()),
      zoneout_c(read.number()),
      candidate_dropout(read.number()),
      cell_clip(read.number()),
      proj_clip(read.number()),
      stream(read.integer()) {}

RecurrenceForwardGiven::RecurrenceForwardGiven(ArgumentReader& read)
    : RecurrenceGiven(read),
      save(read.boolean()),
      return_cells(read.boolean()),
      packed(read.optional_tensors()),
      turn(read.integer()) {}

namespace {

Cell any_cell(int64_t code) {
  constexpr int64_t kLast = static_cast<int64_t>(Cell::kCoupledLstm);
  if (code < 0 || code > kLast)
    fail("cell: expected a number from 0 (lstm) to ", kLast, " (coupled_lstm), got ", code);
  return static_cast<Cell>(code);
}

void check_probability(const char* name, double value) {
  if (!(value >= 0 && value < 1))
    fail(name, ": expected a probability of at least 0 and below 1, got ", value);
}

void check_limit(const char* name, double value) {
  if (!(value >= 0 && std::isfinite(value)))
    fail(name, ": expected a positive limit, or 0 for none, got ", value);
}

}  // namespace

RecurrenceArguments::RecurrenceArguments(const RecurrenceGiven& given, bool packed)
    : RecurrenceArguments(given, View(given.x), packed) {}

RecurrenceArguments::RecurrenceArguments(const RecurrenceGiven& given, const View& x_given,
                                         bool packed)
    : Common(x_given),
      Batch(x_given),
      cell(any_cell(given.cell)),
      projected(bool(given.w_hr)),
      w_hh(given.w_hh),
      w_hr(given.w_hr),
      b_hn(given.b_hn),
      h_0(given.h_0),
      c_0(given.c_0),
      h_mask(given.h_mask),
      peephole(given.peephole),
      norm_hh(given.norm_hh),
      norm_c(given.norm_c),
      bias_c(given.bias_c),
      seed(given.seed),
      reverse(given.reverse),
      hard_sigmoid(given.hard_sigmoid),
      cell_clip(given.cell_clip),
      proj_clip(given.proj_clip),
      noise{given.zoneout_h, given.zoneout_c, given.candidate_dropout, nullptr,
            static_cast<uint32_t>(given.stream)} {
  const int64_t G = num_gates(cell);
  form = given.batch_sizes ? Form::kPacked : Form::kDense;
  const int64_t rank = form == Form::kPacked ? 2 : 3;
  if (x.dim != rank || x.size[rank - 1] % G != 0 || x.size[rank - 1] == 0)
    fail("x: expected shape (", form == Form::kPacked ? "N" : "T, B", ", ", G, " * H), got ", x);
  H = x.size[rank - 1] / G;
  if (w_hh.dim != 2) fail("w_hh: expected shape (", G * H, ", P), got ", w_hh);
  P = projected ? w_hh.size[1] : H;
  if (P == 0) fail("w_hh: expected at least one column, got shape ", w_hh);
  if (form == Form::kPacked) {
    B = std::numeric_limits<int64_t>::max();  // the first size tells
    take_batch_sizes(*this, View(given.batch_sizes));
    if (T == 0) fail("batch_sizes: expected at least one step, got none");
    if (given.lengths) fail("lengths: expected None beside batch_sizes");
    B = batch_sizes[0];
    user_rows = N;
  } else {
    T = x.size[0], B = x.size[1];
    if (T == 0) fail("x: expected at least one step, got shape ", x);
    N = user_rows = T * B;
    if (given.lengths) take_lengths(*this, View(given.lengths));
  }
  if (given.resets) take_resets(*this, View(given.resets));

  check("w_hh", w_hh, {{G * H, P}, 2});
  const auto optional = [&](const char* name, const View& view, const Shape& shape) {
    if (view) check(name, view, shape);
  };
  const auto only = [&](bool fits, const char* name, const View& view, const char* whose) {
    if (view && !fits)
      fail(name, ": expected None for the cell ", cell, ", got a tensor; ", whose, " have one");
  };
  only(cell == Cell::kGru, "b_hn", b_hn, "GRUs whose reset gate comes after the product");
  only(cell != Cell::kGruResetBefore, "w_hr", w_hr, "all other cells");
  only(has_cell(), "c_0", c_0, "LSTMs, and GRUs with w_hr,");
  only(is_lstm(cell), "peephole", peephole, "LSTMs");
  only(is_lstm(cell), "norm_c", norm_c, "LSTMs");
  only(is_lstm(cell), "bias_c", bias_c, "LSTMs");
  optional("b_hn", b_hn, {{H}, 1});
  optional("w_hr", w_hr, {{P, H}, 2});
  optional("h_0", h_0, {{B, P}, 2});
  optional("c_0", c_0, {{B, H}, 2});
  optional("h_mask", h_mask, {{B, P}, 2});
  optional("peephole", peephole, {{G - 1, H}, 2});
  optional("norm_hh", norm_hh, {{G * H}, 1});
  optional("norm_c", norm_c, {{H}, 1});
  optional("bias_c", bias_c, {{H}, 1});
  if (bias_c && !norm_c) fail("bias_c: expected None without norm_c, got a tensor");
  check_probability("zoneout_h", noise.zoneout_h);
  check_probability("zoneout_c", noise.zoneout_c);
  check_probability("candidate_dropout", noise.candidate);
  check_limit("cell_clip", cell_clip);
  check_limit("proj_clip", proj_clip);
  if (seed) check_seed(seed);
  if (given.stream < 0 || given.stream > std::numeric_limits<uint32_t>::max())
    fail("stream: expected a number of 32 bits, got ", given.stream);
  for (View* view : {&w_hh, &w_hr})
    if (!packed) *view = contiguous(widened(*view));
  for (View* view : {&x, &b_hn, &h_0, &c_0, &h_mask, &peephole, &norm_hh, &norm_c, &bias_c, &seed})
    *view = contiguous(widened(*view));
}

void RecurrenceArguments::check_seed(const View& view) const {
  if (view.dtype != aoti_torch_dtype_int64() || view.dim != 1 || view.size[0] != 1)
    fail("seed: expected one number of dtype Long, got shape ", view);
  if (view.device.type != device.type || view.device.index != device.index)
    fail("seed: expected a tensor on the device of x");
}

// ---- results ------------------------------------------------------------------------------------

RecurrenceOutputs::RecurrenceOutputs(const RecurrenceArguments& a, bool save, bool return_cells)
    : dtype(a.dtype) {
  const auto make = [&](bool wanted, const Shape& shape) {
    return empty(wanted ? shape : Shape{{0}, 1}, a.computed, a.device);
  };
  if (return_cells && !a.has_cell()) fail("return_cells: expected False for the cell ", a.cell);
  const int64_t rows = a.user_rows;
  y = make(true, a.rows_shape(a.P));
  cells = make(return_cells, a.rows_shape(a.H));
  h_n = make(true, {{a.B, a.P}, 2});
  c_n = make(a.has_cell(), {{a.B, a.H}, 2});
  step = make(save, {{rows, kept_slots(a.cell), a.H}, 3});
  h_in = make(save, {{rows, a.P}, 2});
  inner = make(save && (a.projected || a.cell == Cell::kGruResetBefore), {{rows, a.H}, 2});
  out = make(save && a.projected, {{rows, a.P}, 2});
  sums = make(save && a.sums_normalized(), {{rows, a.gates()}, 2});
  moments = make(save && (a.sums_normalized() || a.cell_normalized()), {{rows, kMoments}, 2});
}

void RecurrenceOutputs::put(StableIValue* stack) && {
  for (Handle* tensor : {&y, &cells, &h_n, &c_n}) *tensor = in_dtype(std::move(*tensor), dtype);
  int64_t i = 0;
  for (Handle* tensor : {&y, &cells, &h_n, &c_n, &step, &h_in, &inner, &out, &sums, &moments})
    stack[i++] = result(std::move(*tensor));
}

RecurrenceCotangents::RecurrenceCotangents(ArgumentReader& read)
    : given_y(read.optional_tensor()),
      given_cells(read.optional_tensor()),
      given_h_n(read.optional_tensor()),
      given_c_n(read.optional_tensor()),
      given_step(read.optional_tensor()),
      given_h_in(read.optional_tensor()),
      step(read.tensor()),
      h_in(read.tensor()),
      inner(read.tensor()),
      out(read.tensor()),
      sums(read.tensor()),
      moments(read.tensor()),
      save(read.boolean()) {}

// A tensor that an operator left for another.
static void check_kept(const RecurrenceArguments& a, const char* name, const Handle& given,
                       bool there, const Shape& shape) {
  const View view(given);
  a.check_kept(name, view, there ? shape : Shape{{0}, 1});
  if (!is_contiguous(view)) fail(name, ": expected a contiguous tensor, as it was left");
}

void RecurrenceCotangents::check(RecurrenceArguments& a) {
  const auto cotangent = [&](const char* name, const Handle& given, const Shape& shape) {
    const View view(given);
    if (view) a.check(name, view, shape);
    return a.contiguous(a.widened(view));
  };
  y = cotangent("d_y", given_y, a.rows_shape(a.P));
  cells = cotangent("d_cells", given_cells, a.rows_shape(a.H));
  h_n = cotangent("d_h_n", given_h_n, {{a.B, a.P}, 2});
  c_n = cotangent("d_c_n", given_c_n, {{a.B, a.H}, 2});
  if (!a.has_cell() && (cells || c_n))
    fail(cells ? "d_cells" : "d_c_n", ": expected None for the cell ", a.cell, ", got a tensor");
  const int64_t rows = a.user_rows;
  d_step = cotangent("d_step", given_step, {{rows, kept_slots(a.cell), a.H}, 3});
  d_h_in = cotangent("d_h_in", given_h_in, {{rows, a.P}, 2});
  if (d_step && !has_tangent(a.cell))
    fail("d_step: expected None for the cell ", a.cell, ", got a tensor");
  const auto kept = [&](const char* name, const Handle& given, bool there, const Shape& shape) {
    check_kept(a, name, given, there, shape);
  };
  kept("step", step, true, {{rows, kept_slots(a.cell), a.H}, 3});
  kept("h_in", h_in, true, {{rows, a.P}, 2});
  kept("inner", inner, a.projected || a.cell == Cell::kGruResetBefore, {{rows, a.H}, 2});
  kept("out", out, a.projected, {{rows, a.P}, 2});
  kept("sums", sums, a.sums_normalized(), {{rows, a.gates()}, 2});
  kept("moments", moments, a.sums_normalized() || a.cell_normalized(), {{rows, kMoments}, 2});
}

RecurrenceGradients::RecurrenceGradients(const RecurrenceArguments& a, bool save) {
  if (save) a.check_tangent();
  const auto make = [&](bool wanted, const Shape& shape) {
    return empty(wanted ? shape : Shape{{0}, 1}, a.computed, a.device);
  };
  const int64_t rows = a.user_rows;
  x = make(true, a.rows_shape(a.gates()));
  sum = make(a.sums_apart(), {{rows, a.gates()}, 2});
  cell = make(a.cell_normalized(), {{rows, a.H}, 2});
  out = make(a.projected, {{rows, a.P}, 2});
  h_0 = make(true, {{a.B, a.P}, 2});
  c_0 = make(a.has_cell(), {{a.B, a.H}, 2});
  whole_h = make(save, {{rows, a.H}, 2});
  whole_c = make(save && a.has_cell(), {{rows, a.H}, 2});
}

void RecurrenceGradients::put(StableIValue* stack) && {
  int64_t i = 0;
  for (Handle* tensor : {&x, &sum, &cell, &out, &h_0, &c_0, &whole_h, &whole_c})
    stack[i++] = result(std::move(*tensor));
}

// ---- tangents -----------------------------------------------------------------------------------

void RecurrenceArguments::check_tangent() const {
  if (computed != dtype)
    fail("x: expected float32 or float64 on the CPU for a second derivative or a tangent");
  if (!has_tangent(cell)) fail("cell: expected lstm, gru, rnn_tanh or rnn_relu, got ", cell);
  const auto without = [](const char* name, bool given) {
    if (given) fail(name, ": expected none for a second derivative or a tangent");
  };
  without("w_hr", projected);
  without("h_mask", bool(h_mask));
  without("peephole", bool(peephole));
  without("norm_hh", bool(norm_hh));
  without("norm_c", bool(norm_c));
  without("hard_sigmoid", hard_sigmoid);
  without("zoneout_h", noise.zoneout_h != 0);
  without("zoneout_c", noise.zoneout_c != 0);
  without("candidate_dropout", noise.candidate != 0);
  without("cell_clip", cell_clip != 0);
}

TangentGiven::TangentGiven(ArgumentReader& read)
    : given_sum(read.optional_tensor()),
      step(read.tensor()),
      whole_h(read.optional_tensor()),
      whole_c(read.optional_tensor()),
      return_cells(read.boolean()) {}

void TangentGiven::check(RecurrenceArguments& a) {
  a.check_tangent();
  const int64_t rows = a.user_rows;
  sum = View(given_sum);
  if (sum) a.check("t_sum", sum, {{rows, a.gates()}, 2});
  sum = a.contiguous(sum);
  check_kept(a, "step", step, true, {{rows, kept_slots(a.cell), a.H}, 3});
  if (whole_h) check_kept(a, "whole_h", whole_h, true, {{rows, a.H}, 2});
  if (bool(whole_c) != (whole_h && a.has_cell()))
    fail("whole_c: expected a tensor for an LSTM with whole_h, else None");
  if (whole_c) check_kept(a, "whole_c", whole_c, true, {{rows, a.H}, 2});
}

TangentOutputs::TangentOutputs(const RecurrenceArguments& a, const TangentGiven& given) {
  const auto make = [&](bool wanted, const Shape& shape) {
    return empty(wanted ? shape : Shape{{0}, 1}, a.dtype, a.device);
  };
  const int64_t rows = a.user_rows;
  y = make(true, a.rows_shape(a.P));
  cells = make(given.return_cells, a.rows_shape(a.H));
  h_n = make(true, {{a.B, a.P}, 2});
  c_n = make(a.has_cell(), {{a.B, a.H}, 2});
  h_in = make(true, {{rows, a.P}, 2});
  second = make(bool(given.whole_h), {{rows, kept_slots(a.cell), a.H}, 3});
}

void TangentOutputs::put(StableIValue* stack) && {
  int64_t i = 0;
  for (Handle* tensor : {&y, &cells, &h_n, &c_n, &h_in, &second})
    stack[i++] = result(std::move(*tensor));
}

}  // namespace seq2seq_ext
