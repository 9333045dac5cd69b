#include "arguments.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>

namespace seq2seq_ext {

std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (device.type == aoti_torch_device_type_cpu()) return out << "CPU";
  return out << (device.type == aoti_torch_device_type_cuda() ? "CUDA" : "other device's");
}

namespace {

// ---- messages -------------------------------------------------------------------------------

struct WeightName {
  int64_t index;
};

std::ostream& operator<<(std::ostream& out, const WeightName& name) {
  return out << "weights[" << name.index << "]";
}

struct DtypeName {
  int32_t code;
};

std::ostream& operator<<(std::ostream& out, const DtypeName& dtype) {
  using torch::headeronly::ScalarType;
  return out << torch::headeronly::toString(static_cast<ScalarType>(dtype.code));
}

// ---- checks ---------------------------------------------------------------------------------

template <typename Name>
void check_device(const Name& name, const View& view, const Device& device) {
  if (view.device.type != device.type) fail(name, ": expected a ", device, " tensor, like x");
  if (view.device.index != device.index)
    fail(name, ": expected a tensor on device ", device.index, ", like x, got one on device ",
         view.device.index);
}

bool is_narrow(int32_t dtype) {
  return dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16();
}

int32_t computed_dtype(const View& x) {
#ifdef SEQ2SEQ_EXT_CUDA_ON_CPU  // the CUDA kernels on CPU tensors, for tests
  constexpr bool on_cpu = false;
#else
  const bool on_cpu = x.device.type == aoti_torch_device_type_cpu();
#endif
  return on_cpu && is_narrow(x.dtype) ? aoti_torch_dtype_float32() : x.dtype;
}

template <typename Name>
void check_dtype(const Name& name, const View& view, int32_t expected) {
  if (view.dtype != expected)
    fail(name, ": expected dtype ", DtypeName{expected}, ", got ", DtypeName{view.dtype});
}

template <typename Name>
void check_shape(const Name& name, const View& view, const Shape& shape) {
  if (view.dim != shape.dim || !std::equal(shape.size, shape.size + shape.dim, view.size))
    fail(name, ": expected shape ", shape, ", got ", view);
}

template <typename Name>
void check_all(const Name& name, const View& view, const Device& device, int32_t dtype,
               const Shape& shape) {
  check_device(name, view, device);
  check_dtype(name, view, dtype);
  check_shape(name, view, shape);
}

int64_t product(const char* name, int64_t a, int64_t b) {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) fail(name, ": too large: ", a, " x ", b);
  return result;
}

int64_t last_size(const View& view) {
  if (view.dim == 0) fail("x: expected 2 or 3 dimensions, got shape ", view);
  return view.size[view.dim - 1];
}

}  // namespace

std::ostream& operator<<(std::ostream& out, Cell cell) {
  static constexpr const char* kNames[] = {"lstm",     "gru",      "gru_reset_before",
                                           "rnn_tanh", "rnn_relu", "coupled_lstm"};
  return out << kNames[static_cast<int>(cell)];
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "(";
  for (int64_t i = 0; i < shape.dim; ++i) out << (i ? ", " : "") << shape.size[i];
  return out << ")";
}

std::ostream& operator<<(std::ostream& out, const View& view) {
  out << "(";
  for (int64_t i = 0; i < view.dim; ++i) out << (i ? ", " : "") << view.size[i];
  return out << ")";
}

Cell cell_of(int64_t code) {
  constexpr int64_t kLast = static_cast<int64_t>(Cell::kRnnRelu);
  if (code < 0 || code > kLast)
    fail("cell: expected a number from 0 (lstm) to ", kLast, " (rnn_relu), got ", code);
  return static_cast<Cell>(code);
}

// ---- what all calls check -------------------------------------------------------------------

Common::Common(const View& x, const char* name)
    : dtype(x.dtype), computed(computed_dtype(x)), device(x.device) {
  if (dtype != aoti_torch_dtype_float32() && dtype != aoti_torch_dtype_float64() &&
      !is_narrow(dtype))
    fail(name, ": expected dtype Float, Double, Half or BFloat16, got ", DtypeName{dtype});
}

void Common::check(const char* name, const View& view, const Shape& shape) const {
  check_all(name, view, device, dtype, shape);
}

void Common::check_kept(const char* name, const View& view, const Shape& shape) const {
  check_all(name, view, device, computed, shape);
}

View Common::contiguous(View view) {
  if (!view) return view;
  if (is_contiguous(view)) return view;
  const torch::stable::Tensor copy =
      torch::stable::contiguous(torch::stable::Tensor(alias(view.handle).release()));
  copies_.push_back(alias(copy.get()));
  return View(copies_.back());
}

View Common::widened(View view) {
  if (!view || view.dtype != dtype || computed == dtype) return view;
  copies_.push_back(in_dtype(alias(view.handle), computed));
  return View(copies_.back());
}

View Common::with_adjacent_features(View view) {
  const int64_t last = view.dim - 1;
  return view.size[last] <= 1 || view.stride[last] == 1 ? view : contiguous(view);
}

View Common::integers(const char* name, View view, const Shape& shape, int64_t most) {
  if (!view) return view;
  const auto lies_on = [&](int32_t type) { return view.device.type == type; };
  const bool here = lies_on(aoti_torch_device_type_cpu());
  if (!here && lies_on(device.type)) {
    check_all(name, view, device, aoti_torch_dtype_int64(), shape);
    return contiguous(view);
  }
  if (!here || view.dtype != aoti_torch_dtype_int64())
    fail(name, ": expected a CPU tensor of dtype Long");
  check_shape(name, view, shape);
  view = contiguous(view);
  const auto* values = static_cast<const int64_t*>(view.data());
  for (int64_t i = 0, count = view.numel(); i < count; ++i)
    if (values[i] < 0 || values[i] > most)
      fail(name, ": expected values from 0 to ", most, ", got ", values[i], " at ", i);
  return view;
}

Shape Batch::rows_shape(int64_t features) const {
  switch (form) {
    case Form::kPacked:
      return {{N, features}, 2};
    case Form::kStep:
      return {{B, features}, 2};
    case Form::kDense:
      break;
  }
  return {{T, B, features}, 3};
}

void Batch::take_batch_sizes(Common& common, const View& given) {
  if (given.device.type != aoti_torch_device_type_cpu()) fail("batch_sizes: expected a CPU tensor");
  check_dtype("batch_sizes", given, aoti_torch_dtype_int64());
  if (given.dim != 1) fail("batch_sizes: expected 1 dimension, got shape ", given);
  T = given.size[0];
  batch_sizes = static_cast<const int64_t*>(common.contiguous(given).data());
  N = 0;
  for (int64_t t = 0; t < T; ++t) {
    if (batch_sizes[t] < 0 || batch_sizes[t] > (t == 0 ? B : batch_sizes[t - 1]))
      fail("batch_sizes: expected sizes from the batch size ", B, " on that never increase, got ",
           batch_sizes[t], " at step ", t);
    N += batch_sizes[t];
  }
  if (N != x.size[0]) fail("batch_sizes: expected a sum of ", x.size[0], " as x has rows, got ", N);
}

void Batch::take_lengths(Common& common, const View& given) {
  if (given.device.type != aoti_torch_device_type_cpu()) {
    check_all("lengths", given, common.device, aoti_torch_dtype_int64(), {{B}, 1});
    lengths_on_device = common.contiguous(given);
    return;
  }
  check_all("lengths", given, given.device, aoti_torch_dtype_int64(), {{B}, 1});
  const int64_t* length = static_cast<const int64_t*>(common.contiguous(given).data());
  int64_t sum = 0;
  for (int64_t b = 0; b < B; ++b) {
    if (length[b] < 0 || length[b] > T)
      fail("lengths: expected values from 0 to ", T, " (the steps of x), got ", length[b],
           " in row ", b);
    sum += length[b];
  }
  if (sum == N) return;  // all of them T
  lengths = length;
  N = sum;
}

void Batch::take_resets(Common& common, const View& given) {
  check_all("resets", given, common.device, aoti_torch_dtype_bool(),
            form == Form::kPacked ? Shape{{N}, 1} : Shape{{T, B}, 2});
  resets = common.contiguous(given);
}

// ---- layers ----------------------------------------------------------------------------------

Layers::Layers(const std::vector<Handle>& tensors, int64_t cell_number, int64_t num_layers,
               bool bidirectional, const View& like, int64_t I)
    : Common(like), cell(cell_of(cell_number)), I(I) {
  if (num_layers <= 0) fail("num_layers: expected at least 1, got ", num_layers);
  L = num_layers;
  D = bidirectional ? 2 : 1;
  const int64_t layers = product("num_layers", L, D), count = static_cast<int64_t>(tensors.size());
  const int64_t each = count / layers;
  if (each * layers != count || each < 2 || each > 5)
    fail("weights: expected 2 to 5 tensors for each of ", layers, " layers and directions, got ",
         count);
  bias = each >= 4;
  projected = each == 3 || each == 5;
  if (projected && cell != Cell::kLstm)
    fail("weights: expected 2 or 4 tensors per layer and direction, got ", each,
         "; only the cell lstm has projections");
  const View w_ih(tensors[0]), w_hh(tensors[1]);
  const int64_t gates = num_gates(cell);
  if (w_ih.dim != 2 || w_ih.size[0] % gates != 0 || w_ih.size[0] == 0)
    fail("weights[0]: expected shape (", gates, " * H, I), got ", w_ih);
  H = w_ih.size[0] / gates;
  if (w_hh.dim != 2 || w_hh.size[1] == 0)
    fail("weights[1]: expected shape (", gates * H, ", P), got ", w_hh);
  P = projected ? w_hh.size[1] : H;
  given.reserve(count);
  weights.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const View weight(tensors[i]);
    check_all(WeightName{i}, weight, device, dtype, weight_shape(i / each / D, i % each));
    given.push_back(weight.data());
    weights.push_back(contiguous(weight).data());
  }
}

Shape Layers::weight_shape(int64_t layer, int64_t role) const {
  const int64_t rows = num_gates(cell) * H;
  if (role == 0) return {{rows, layer == 0 ? I : D * P}, 2};
  if (role == 1) return {{rows, P}, 2};
  if (bias && role < 4) return {{rows}, 1};
  return {{P, H}, 2};
}

size_t Layers::weight_bytes(int64_t index) const {
  const Shape shape = weight_shape(index / roles() / D, index % roles());
  const int64_t elements = shape.size[0] * (shape.dim == 2 ? shape.size[1] : 1);
  return static_cast<size_t>(elements * element_size(dtype));
}

void Layers::widen_weights(const std::vector<Handle>& tensors) {
  if (computed == dtype) return;
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = contiguous(widened(View(tensors[i]))).data();
}

// ---- arguments ------------------------------------------------------------------------------

Arguments::Arguments(const Given& given) : Arguments(given, View(given.x)) {}

Arguments::Arguments(const Given& given, const View& x_given)
    : Layers(given.weights, given.cell, given.num_layers, given.bidirectional, x_given,
             last_size(x_given)),
      Batch(x_given),
      h_0(given.h_0),
      c_0(given.c_0) {
  if (given.batch_sizes) {
    form = Form::kPacked;
    if (x.dim != 2) fail("x: expected 2 dimensions (N, I), with batch_sizes, got shape ", x);
    if (given.lengths) fail("lengths: expected None beside batch_sizes");
    if (!h_0) fail("h_0: expected a tensor beside batch_sizes, got None");
  } else if (x.dim == 3) {
    form = Form::kDense;
  } else {
    form = Form::kStep;
    if (x.dim != 2)
      fail("x: expected 3 dimensions (T, B, I), or 2 dimensions (B, I) for one step, got shape ",
           x);
    if (L != 1 || D != 1)
      fail("x: expected 3 dimensions (T, B, I) for more than one layer or direction, got shape ",
           x);
    if (given.lengths || given.resets || given.dropout_mask)
      fail("x: expected 3 dimensions (T, B, I) with lengths, resets or dropout_mask, got shape ",
           x);
  }
  if (form == Form::kPacked) {
    if (h_0.dim != 3) fail("h_0: expected shape (", L * D, ", B, ", P, "), got ", h_0);
    B = h_0.size[1];
    take_batch_sizes(*this, View(given.batch_sizes));
    user_rows = N;
  } else {
    T = form == Form::kStep ? 1 : x.size[0];
    if (T == 0) fail("x: expected at least one step, got shape ", x);
    B = x.size[x.dim - 2];
    N = user_rows = product("x", T, B);
    if (given.lengths) take_lengths(*this, View(given.lengths));
  }
  if (cell != Cell::kLstm) {
    if (c_0) fail("c_0: expected None for the cell ", cell, ", got a tensor");
  } else if (bool(h_0) != bool(c_0)) {
    fail(h_0 ? "c_0: expected a tensor, as h_0 is one, got None"
             : "h_0: expected a tensor, as c_0 is one, got None");
  }
  if (h_0) check("h_0", h_0, state_shape(P));
  if (c_0) check("c_0", c_0, state_shape(H));
  if (given.resets) take_resets(*this, View(given.resets));
  if (given.dropout_mask) {
    dropout_mask = View(given.dropout_mask);
    check("dropout_mask", dropout_mask,
          form == Form::kPacked ? Shape{{L - 1, N, D * P}, 3} : Shape{{L - 1, T, B, D * P}, 4});
    dropout_mask = contiguous(widened(dropout_mask));
  }
  x = with_adjacent_features(widened(x));
  h_0 = contiguous(widened(h_0));
  c_0 = contiguous(widened(c_0));
}

Shape Arguments::state_shape(int64_t features) const {
  if (form == Form::kStep) return {{B, features}, 2};
  return {{L * D, B, features}, 3};
}

void Arguments::check_none(const char* name, const View& view, const char* what) const {
  if (view) fail(name, ": expected None for ", what, ", got a tensor");
}

// ---- calls ------------------------------------------------------------------------------------

namespace {

void take_layers(ArgumentReader& read, Given& given) {
  given.x = read.tensor();
  given.h_0 = read.optional_tensor();
  given.c_0 = read.optional_tensor();
  given.weights = read.tensors();
}

void take_options(ArgumentReader& read, Given& given) {
  given.cell = read.integer();
  given.num_layers = read.integer();
  given.bidirectional = read.boolean();
}

void take_sequence(ArgumentReader& read, Given& given) {
  given.lengths = read.optional_tensor();
  given.batch_sizes = read.optional_tensor();
  given.resets = read.optional_tensor();
  given.dropout_mask = read.optional_tensor();
}

}  // namespace

ForwardGiven::ForwardGiven(const StableIValue* stack) {
  ArgumentReader read(stack);
  take_layers(read, *this);
  take_options(read, *this);
  save = read.boolean();
  packed = read.optional_tensor();
  turn = read.integer();
  take_sequence(read, *this);
  allow_tf32 = read.boolean();
}

BackwardGiven::BackwardGiven(const StableIValue* stack) {
  ArgumentReader read(stack);
  d_y = read.optional_tensor();
  d_h_n = read.optional_tensor();
  d_c_n = read.optional_tensor();
  take_layers(read, *this);
  y = read.tensor();
  reserve = read.tensor();
  take_options(read, *this);
  input_grad = read.boolean();
  state_grad = read.boolean();
  weight_grad = read.boolean();
  take_sequence(read, *this);
  allow_tf32 = read.boolean();
}

Cotangents::Cotangents(const BackwardGiven& given, const Arguments& a)
    : y(given.d_y), h_n(given.d_h_n), c_n(given.d_c_n) {
  a.check("y", View(given.y), a.output_shape());
  a.check_kept("reserve", View(given.reserve), {{a.reserve_elements()}, 1});
  if (y) a.check("d_y", y, a.output_shape());
  if (a.form == Form::kStep) a.check_none("d_h_n", h_n, "one step");
  if (h_n) a.check("d_h_n", h_n, a.state_shape(a.P));
  if (a.cell != Cell::kLstm) a.check_none("d_c_n", c_n, "a cell other than lstm");
  if (c_n) a.check("d_c_n", c_n, a.state_shape(a.H));
}

// ---- results ----------------------------------------------------------------------------------

namespace {

constexpr Shape kNothing{{0}, 1};

// Like x, whose axes are 2 or 3.
Shape input_shape(const Arguments& a) {
  Shape shape{{}, a.x.dim};
  std::copy(a.x.size, a.x.size + a.x.dim, shape.size);
  return shape;
}

}  // namespace

// The reserve has one size whatever the lengths, so that it is known without looking into them.
Outputs::Outputs(const Arguments& a, bool save)
    : dtype(a.dtype),
      y(empty(a.output_shape(), a.computed, a.device)),
      h_n(empty(a.form == Form::kStep ? kNothing : a.state_shape(a.P), a.computed, a.device)),
      c_n(empty(a.cell == Cell::kLstm ? a.state_shape(a.H) : kNothing, a.computed, a.device)),
      reserve(empty(save ? Shape{{a.reserve_elements()}, 1} : kNothing, a.computed, a.device)) {}

void Outputs::put(StableIValue* stack) && {
  stack[0] = result(in_dtype(std::move(y), dtype));
  stack[1] = result(in_dtype(std::move(h_n), dtype));
  stack[2] = result(in_dtype(std::move(c_n), dtype));
  stack[3] = result(std::move(reserve));
}

Gradients::Gradients(const Arguments& a, const BackwardGiven& given)
    : dtype(a.dtype),
      input_wanted(given.input_grad),
      state_wanted(given.state_grad && a.h_0),
      weights_wanted(given.weight_grad),
      x(empty(input_wanted ? input_shape(a) : kNothing, a.computed, a.device)),
      h_0(empty(state_wanted ? a.state_shape(a.P) : kNothing, a.computed, a.device)),
      c_0(empty(state_wanted && a.cell == Cell::kLstm ? a.state_shape(a.H) : kNothing, a.computed,
                a.device)) {
  if (!weights_wanted) return;
  weights.reserve(a.weights.size());
  for (int64_t layer = 0; layer < a.L; ++layer)
    for (int64_t i = 0; i < a.D * a.roles(); ++i)
      weights.push_back(empty(a.weight_shape(layer, i % a.roles()), a.computed, a.device));
}

void Gradients::put(StableIValue* stack) && {
  for (Handle& weight : weights) weight = in_dtype(std::move(weight), dtype);
  stack[0] = result(in_dtype(std::move(x), dtype));
  stack[1] = result(in_dtype(std::move(h_0), dtype));
  stack[2] = result(in_dtype(std::move(c_0), dtype));
  stack[3] = result(std::move(weights));
}

}  // namespace seq2seq_ext
