#include "arguments.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>

namespace seq2seq_ext {
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
void check_cpu(const Name& name, const View& view) {
  if (view.device != aoti_torch_device_type_cpu()) fail(name, ": expected a CPU tensor, like x");
}

template <typename Name>
void check_dtype(const Name& name, const View& view, int32_t expected) {
  if (view.dtype != expected)
    fail(name, ": expected dtype ", DtypeName{expected}, ", got ", DtypeName{view.dtype});
}

template <typename Name>
void check_all(const Name& name, const View& view, int32_t dtype, const Shape& shape) {
  check_cpu(name, view);
  check_dtype(name, view, dtype);
  if (view.dim != shape.dim || !std::equal(shape.size, shape.size + shape.dim, view.size))
    fail(name, ": expected shape ", shape, ", got ", view);
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

Cell cell_of(int64_t code) {
  constexpr int64_t kLast = static_cast<int64_t>(Cell::kRnnRelu);
  if (code < 0 || code > kLast)
    fail("cell: expected a number from 0 (lstm) to ", kLast, " (rnn_relu), got ", code);
  return static_cast<Cell>(code);
}

}  // namespace

std::ostream& operator<<(std::ostream& out, Cell cell) {
  static constexpr const char* kNames[] = {"lstm", "gru", "gru_reset_before", "rnn_tanh",
                                           "rnn_relu"};
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

// ---- layers ----------------------------------------------------------------------------------

Layers::Layers(const std::vector<Handle>& tensors, int64_t cell_number, int64_t num_layers,
               bool bidirectional, int32_t dtype, int64_t I)
    : cell(cell_of(cell_number)), dtype(dtype), I(I) {
  if (dtype != aoti_torch_dtype_float32() && dtype != aoti_torch_dtype_float64())
    fail("x: expected dtype Float or Double, got ", DtypeName{dtype});
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
    check_all(WeightName{i}, weight, dtype, weight_shape(i / each / D, i % each));
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
  return static_cast<size_t>(elements) * (dtype == aoti_torch_dtype_float64() ? 8 : 4);
}

View Layers::contiguous(View view) {
  if (!view) return view;
  bool is_contiguous;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(view.handle, &is_contiguous));
  if (is_contiguous) return view;
  AtenTensorHandle alias;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(view.handle, &alias));
  const torch::stable::Tensor copy = torch::stable::contiguous(torch::stable::Tensor(alias));
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(copy.get(), &alias));
  copies_.emplace_back(alias);
  return View(copies_.back());
}

// ---- arguments ------------------------------------------------------------------------------

Arguments::Arguments(const Given& given) : Arguments(given, View(given.x)) {}

Arguments::Arguments(const Given& given, const View& x_given)
    : Layers(given.weights, given.cell, given.num_layers, given.bidirectional, x_given.dtype,
             last_size(x_given)),
      x(x_given),
      h_0(given.h_0),
      c_0(given.c_0) {
  check_cpu("x", x);
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
    take_batch_sizes(View(given.batch_sizes));
    user_rows = N;
  } else {
    T = form == Form::kStep ? 1 : x.size[0];
    if (T == 0) fail("x: expected at least one step, got shape ", x);
    B = x.size[x.dim - 2];
    N = user_rows = product("x", T, B);
    if (given.lengths) take_lengths(View(given.lengths));
  }
  if (cell != Cell::kLstm) {
    if (c_0) fail("c_0: expected None for the cell ", cell, ", got a tensor");
  } else if (bool(h_0) != bool(c_0)) {
    fail(h_0 ? "c_0: expected a tensor, as h_0 is one, got None"
             : "h_0: expected a tensor, as c_0 is one, got None");
  }
  if (h_0) check("h_0", h_0, state_shape(P));
  if (c_0) check("c_0", c_0, state_shape(H));
  if (given.resets) take_resets(View(given.resets));
  if (given.dropout_mask) {
    dropout_mask = View(given.dropout_mask);
    check("dropout_mask", dropout_mask,
          form == Form::kPacked ? Shape{{L - 1, N, D * P}, 3} : Shape{{L - 1, T, B, D * P}, 4});
    dropout_mask = contiguous(dropout_mask);
  }
  x = with_adjacent_features(x);
  h_0 = contiguous(h_0);
  c_0 = contiguous(c_0);
}

Shape Arguments::output_shape() const {
  switch (form) {
    case Form::kPacked:
      return {{N, D * P}, 2};
    case Form::kStep:
      return {{B, P}, 2};
    case Form::kDense:
      break;
  }
  return {{T, B, D * P}, 3};
}

Shape Arguments::state_shape(int64_t features) const {
  if (form == Form::kStep) return {{B, features}, 2};
  return {{L * D, B, features}, 3};
}

void Arguments::check(const char* name, const View& view, const Shape& shape) const {
  check_all(name, view, dtype, shape);
}

void Arguments::check_none(const char* name, const View& view, const char* what) const {
  if (view) fail(name, ": expected None for ", what, ", got a tensor");
}

View Arguments::with_adjacent_features(View view) {
  const int64_t last = view.dim - 1;
  return view.size[last] <= 1 || view.stride[last] == 1 ? view : contiguous(view);
}

void Arguments::take_batch_sizes(View given) {
  check_cpu("batch_sizes", given);
  check_dtype("batch_sizes", given, aoti_torch_dtype_int64());
  if (given.dim != 1) fail("batch_sizes: expected 1 dimension, got shape ", given);
  T = given.size[0];
  batch_sizes_ = static_cast<const int64_t*>(contiguous(given).data());
  N = 0;
  for (int64_t t = 0; t < T; ++t) {
    if (batch_sizes_[t] < 0 || batch_sizes_[t] > (t == 0 ? B : batch_sizes_[t - 1]))
      fail("batch_sizes: expected sizes from the batch size ", B, " on that never increase, got ",
           batch_sizes_[t], " at step ", t);
    N += batch_sizes_[t];
  }
  if (N != x.size[0]) fail("batch_sizes: expected a sum of ", x.size[0], " as x has rows, got ", N);
}

void Arguments::take_lengths(View given) {
  check_all("lengths", given, aoti_torch_dtype_int64(), {{B}, 1});
  const int64_t* length = static_cast<const int64_t*>(contiguous(given).data());
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

void Arguments::take_resets(View given) {
  check_all("resets", given, aoti_torch_dtype_bool(),
            form == Form::kPacked ? Shape{{N}, 1} : Shape{{T, B}, 2});
  resets_ = static_cast<const uint8_t*>(contiguous(given).data());
}

void Arguments::arrange(Scratch::Frame& frame) {
  if (form == Form::kPacked) {
    active = batch_sizes_;
  } else {
    int64_t* running = frame.take<int64_t>(T);
    if (lengths == nullptr) {
      std::fill(running, running + T, B);
    } else {
      int64_t* sorted = frame.take<int64_t>(B);
      std::iota(sorted, sorted + B, 0);
      std::sort(sorted, sorted + B, [&](int64_t a, int64_t b) {
        return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b;
      });
      for (int64_t t = 0, b = B; t < T; ++t) {
        while (b > 0 && lengths[sorted[b - 1]] <= t) --b;
        running[t] = b;
      }
      source = sorted;
    }
    active = running;
  }
  int64_t* first = frame.take<int64_t>(T);
  for (int64_t t = 0, r = 0; t < T; ++t) {
    first[t] = r;
    r += active[t];
  }
  offset = first;
  if (source != nullptr) {
    int64_t* at = frame.take<int64_t>(N);
    for (int64_t t = 0, r = 0; t < T; ++t)
      for (int64_t b = 0; b < active[t]; ++b) at[r++] = t * B + source[b];
    row = at;
  }
  if (resets_ != nullptr) {
    if (row == nullptr) {
      reset = resets_;
    } else {
      uint8_t* compact = frame.take<uint8_t>(N);
      for (int64_t r = 0; r < N; ++r) compact[r] = resets_[row[r]];
      reset = compact;
    }
    if (std::all_of(reset, reset + N, [](uint8_t value) { return value == 0; })) reset = nullptr;
  }
}

}  // namespace seq2seq_ext
