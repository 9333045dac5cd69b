// The operators on CPU tensors: checks every argument, brings the batch into compact order
// (kernels.h), allocates, and calls the kernels on torch's threads. No kernel runs, and no memory
// is written, before all checks have passed.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "plan.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// ---- checks ---------------------------------------------------------------------------------

// Becomes a RuntimeError in Python. Unlike STD_TORCH_CHECK it does not put this file's name before
// what a user is to read.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

void check_shape(const std::string& name, const Tensor& tensor, const Shape& expected) {
  require(shape_of(tensor) == expected, name, ": expected shape ", to_string(expected), ", got ",
          to_string(shape_of(tensor)));
}

void check_cpu(const std::string& name, const Tensor& tensor) {
  require(tensor.is_cpu(), name, ": expected a CPU tensor, like x");
}

const char* dtype_name(ScalarType dtype) { return torch::headeronly::toString(dtype); }

void check_dtype(const std::string& name, const Tensor& tensor, ScalarType expected) {
  require(tensor.scalar_type() == expected, name, ": expected dtype ", dtype_name(expected),
          ", got ", dtype_name(tensor.scalar_type()));
}

void check(const std::string& name, const Tensor& tensor, ScalarType dtype, const Shape& shape) {
  check_cpu(name, tensor);
  check_dtype(name, tensor, dtype);
  check_shape(name, tensor, shape);
}

Cell cell_of(const std::string& name) {
  if (name == "lstm") return Cell::kLstm;
  if (name == "gru") return Cell::kGru;
  if (name == "gru_reset_before") return Cell::kGruResetBefore;
  if (name == "rnn_tanh") return Cell::kRnnTanh;
  if (name == "rnn_relu") return Cell::kRnnRelu;
  throw std::runtime_error(
      "cell: expected lstm, gru, gru_reset_before, rnn_tanh or rnn_relu, got " + name);
}

// ---- arguments ------------------------------------------------------------------------------

// A tensor whose features are adjacent; other strides stay as they are.
Tensor with_adjacent_features(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor
                                                            : torch::stable::contiguous(tensor);
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

// The arguments that forward and backward share, checked, and the batch in compact order.
struct Arguments {
  Cell cell;
  ScalarType dtype;
  bool packed;
  int64_t T, B, I, H, P, L, D, N;
  int64_t user_rows;  // of x without its features: T*B, or N where packed
  bool bias, projected;
  Tensor x, h_0;
  std::optional<Tensor> c_0, dropout_mask;
  std::vector<Tensor> weights;

  // See Sequence. `row` is where the caller has compact row r (t * B + b); empty: at r.
  std::vector<int64_t> active, offset, source, row;
  std::vector<int64_t> lengths;  // (B) as given, or empty: all T
  std::vector<uint8_t> reset;

  Arguments(const Tensor& x, const Tensor& h_0, const std::optional<Tensor>& c_0,
            const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
            const std::optional<Tensor>& batch_sizes, const std::optional<Tensor>& resets,
            const std::optional<Tensor>& dropout_mask, const std::string& cell_name,
            int64_t num_layers, bool bidirectional)
      : cell(cell_of(cell_name)),
        dtype(x.scalar_type()),
        packed(batch_sizes.has_value()),
        x(x),
        h_0(h_0) {
    check_cpu("x", x);
    require(dtype == ScalarType::Float || dtype == ScalarType::Double,
            "x: expected dtype Float or Double, got ", dtype_name(dtype));
    require(x.dim() == (packed ? 2 : 3), "x: expected ",
            packed ? "2 dimensions (N, I), with batch_sizes" : "3 dimensions (T, B, I)",
            ", got shape ", to_string(shape_of(x)));
    require(num_layers > 0, "num_layers: expected at least 1, got ", num_layers);
    L = num_layers;
    D = bidirectional ? 2 : 1;
    I = x.size(x.dim() - 1);
    check_cpu("h_0", h_0);
    check_dtype("h_0", h_0, dtype);
    require(h_0.dim() == 3 && h_0.size(0) == L * D, "h_0: expected shape (", L * D, ", B, P), got ",
            to_string(shape_of(h_0)));
    B = h_0.size(1);
    P = h_0.size(2);
    require(P > 0, "h_0: expected at least one feature, got shape ", to_string(shape_of(h_0)));
    take_weights(weights);
    if (cell == Cell::kLstm) {
      require(c_0.has_value(), "c_0: expected a tensor for the cell lstm, got None");
      check("c_0", *c_0, dtype, {L * D, B, H});
    } else {
      require(!c_0.has_value(), "c_0: expected None for the cell ", cell_name, ", got a tensor");
    }
    if (packed) {
      require(!lengths.has_value(), "lengths: expected None beside batch_sizes");
      take_batch_sizes(*batch_sizes);
    } else {
      T = x.size(0);
      require(x.size(1) == B, "x: expected batch size ", B, " as h_0 has, got shape ",
              to_string(shape_of(x)));
      if (lengths) take_lengths(*lengths);
      if (this->lengths.empty()) take_dense();
    }
    user_rows = packed ? N : T * B;
    if (resets) take_resets(*resets);
    if (dropout_mask) {
      check("dropout_mask", *dropout_mask, dtype,
            packed ? Shape{L - 1, N, D * P} : Shape{L - 1, T, B, D * P});
    }
    this->x = with_adjacent_features(x);
    this->h_0 = torch::stable::contiguous(h_0);
    this->c_0 = contiguous(c_0);
    this->dropout_mask = contiguous(dropout_mask);
  }

  Sequence sequence() const {
    return {T,
            B,
            N,
            active.data(),
            offset.data(),
            source.empty() ? nullptr : source.data(),
            reset.empty() ? nullptr : reset.data()};
  }

  Plan plan(bool backward, int vector_bytes) const {
    const Problem problem{cell,        backward, false, T, B, N,
                          I,           H,        P,     L, D, dtype == ScalarType::Float ? 4u : 8u,
                          vector_bytes};
    return make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
  }

 private:
  void take_weights(const std::vector<Tensor>& given) {
    const int64_t layers = L * D;
    const int64_t each = static_cast<int64_t>(given.size()) / layers;
    require(each * layers == static_cast<int64_t>(given.size()) && each >= 2 && each <= 5,
            "weights: expected 2 to 5 tensors for each of ", layers, " layers and directions, got ",
            given.size());
    bias = each >= 4;
    projected = each == 3 || each == 5;
    require(!projected || cell == Cell::kLstm,
            "weights: expected 2 or 4 tensors per layer and direction, got ", each,
            "; only the cell lstm has projections");
    require(given[0].dim() == 2 && given[0].size(0) % num_gates(cell) == 0 && given[0].size(0) > 0,
            "weights[0]: expected shape (", num_gates(cell), " * H, I), got ",
            to_string(shape_of(given[0])));
    H = given[0].size(0) / num_gates(cell);
    require(projected || P == H, "h_0: expected ", H,
            " features as the weights have units, got shape ", to_string(shape_of(h_0)));
    const int64_t rows = num_gates(cell) * H;
    for (int64_t i = 0; i < layers * each; ++i) {
      const int64_t layer = i / each / D, role = i % each;
      const Shape expected = role == 0          ? Shape{rows, layer == 0 ? I : D * P}
                             : role == 1        ? Shape{rows, P}
                             : bias && role < 4 ? Shape{rows}
                                                : Shape{P, H};
      check("weights[" + std::to_string(i) + "]", given[i], dtype, expected);
      weights.push_back(torch::stable::contiguous(given[i]));
    }
  }

  // Fills the tables from active.
  void finish_sequence() {
    offset.resize(T);
    N = 0;
    for (int64_t t = 0; t < T; ++t) {
      offset[t] = N;
      N += active[t];
    }
  }

  void take_dense() {
    active.assign(T, B);
    finish_sequence();
  }

  void take_batch_sizes(const Tensor& given) {
    check_cpu("batch_sizes", given);
    check_dtype("batch_sizes", given, ScalarType::Long);
    require(given.dim() == 1, "batch_sizes: expected 1 dimension, got shape ",
            to_string(shape_of(given)));
    const Tensor sizes = torch::stable::contiguous(given);
    const int64_t* size = sizes.const_data_ptr<int64_t>();
    T = sizes.numel();
    for (int64_t t = 0; t < T; ++t) {
      require(size[t] >= 0 && size[t] <= (t == 0 ? B : size[t - 1]),
              "batch_sizes: expected sizes from the batch size ", B,
              " on that never increase, got ", size[t], " at step ", t);
    }
    active.assign(size, size + T);
    finish_sequence();
    require(N == x.size(0), "batch_sizes: expected a sum of ", x.size(0), " as x has rows, got ",
            N);
  }

  void take_lengths(const Tensor& given) {
    check("lengths", given, ScalarType::Long, {B});
    const Tensor values = torch::stable::contiguous(given);
    const int64_t* length = values.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b) {
      require(length[b] >= 0 && length[b] <= T, "lengths: expected values from 0 to ", T,
              " (the steps of x), got ", length[b], " in row ", b);
    }
    if (std::all_of(length, length + B, [&](int64_t n) { return n == T; })) return;
    lengths.assign(length, length + B);
    source.resize(B);
    std::iota(source.begin(), source.end(), 0);
    std::stable_sort(source.begin(), source.end(),
                     [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    active.resize(T);
    for (int64_t t = 0, b = B; t < T; ++t) {
      while (b > 0 && length[source[b - 1]] <= t) --b;
      active[t] = b;
    }
    finish_sequence();
    row.reserve(N);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t b = 0; b < active[t]; ++b) row.push_back(t * B + source[b]);
  }

  void take_resets(const Tensor& given) {
    check("resets", given, ScalarType::Bool, packed ? Shape{N} : Shape{T, B});
    const Tensor values = torch::stable::contiguous(given);
    const uint8_t* value = static_cast<const uint8_t*>(values.const_data_ptr());
    reset.resize(N);
    bool any = false;
    for (int64_t r = 0; r < N; ++r) {
      reset[r] = value[row.empty() ? r : row[r]] != 0;
      any = any || reset[r];
    }
    if (!any) reset.clear();
  }
};

// Where compact rows lie in a tensor shaped like x, with any strides but adjacent features. The
// table is made only where no single stride does.
template <typename T>
Rows<T> rows_of(const Arguments& a, T* base, const Tensor& tensor, std::vector<int64_t>& table) {
  if (a.packed) return {base, nullptr, tensor.stride(0)};
  const int64_t time = tensor.stride(0), batch = tensor.stride(1);
  if (a.row.empty()) {
    if (a.T <= 1 || time == a.B * batch) return {base, nullptr, batch};
    if (a.B <= 1) return {base, nullptr, time};
  }
  table.resize(a.N);
  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t b = 0; b < a.active[t]; ++b) {
      const int64_t source = a.source.empty() ? b : a.source[b];
      table[a.offset[t] + b] = t * time + source * batch;
    }
  }
  return {base, table.data(), 0};
}

// Zeros in the rows of a contiguous tensor (T, B, features) that lie behind the end of a sequence.
template <typename T>
void zero_padding(const Arguments& a, T* base, int64_t features) {
  for (int64_t b = 0; b < static_cast<int64_t>(a.lengths.size()); ++b)
    for (int64_t t = a.lengths[b]; t < a.T; ++t) {
      T* row = base + (t * a.B + b) * features;
      std::fill(row, row + features, T(0));
    }
}

template <typename T>
std::vector<Weights<T>> weight_pointers(const Arguments& a, const std::vector<Tensor>& tensors) {
  const int64_t each = 2 + (a.bias ? 2 : 0) + (a.projected ? 1 : 0);
  std::vector<Weights<T>> pointers;
  for (int64_t i = 0; i < a.L * a.D; ++i) {
    const auto at = [&](int64_t role) {
      return static_cast<T*>(tensors[i * each + role].data_ptr());
    };
    pointers.push_back({at(0), at(1), a.bias ? at(2) : nullptr, a.bias ? at(3) : nullptr,
                        a.projected ? at(each - 1) : nullptr});
  }
  return pointers;
}

template <typename T>
T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

// What must outlive a Stack: the tables that it points into.
template <typename T>
struct StackStorage {
  std::vector<Weights<const T>> weights;
  std::vector<int64_t> x_offset, mask_offset, y_offset, d_y_offset, d_x_offset;
};

template <typename T>
void fill_stack(const Arguments& a, bool backward, int vector_bytes, StackStorage<T>& storage,
                Stack<T>& stack) {
  stack.cell = a.cell;
  stack.L = a.L;
  stack.D = a.D;
  stack.I = a.I;
  stack.H = a.H;
  stack.P = a.P;
  stack.sequence = a.sequence();
  stack.plan = a.plan(backward, vector_bytes);
  storage.weights = weight_pointers<const T>(a, a.weights);
  stack.weights = storage.weights.data();
  stack.x = rows_of(a, static_cast<const T*>(a.x.const_data_ptr()), a.x, storage.x_offset);
  stack.mask_layer = 0;
  if (a.dropout_mask && a.L > 1) {
    const int64_t width = a.D * a.P;
    stack.mask_layer = a.user_rows * width;
    stack.dropout_mask = {pointer<const T>(a.dropout_mask), nullptr, width};
    if (!a.row.empty()) {
      storage.mask_offset.resize(a.N);
      for (int64_t r = 0; r < a.N; ++r) storage.mask_offset[r] = a.row[r] * width;
      stack.dropout_mask.offset = storage.mask_offset.data();
    }
  }
  stack.h_0 = static_cast<const T*>(a.h_0.const_data_ptr());
  stack.c_0 = pointer<const T>(a.c_0);
}

// ---- running --------------------------------------------------------------------------------

Tensor empty_like_x(const Arguments& a, const Shape& shape) {
  return torch::stable::new_empty(a.x, {shape.data(), shape.size()});
}

Shape output_shape(const Arguments& a) {
  return a.packed ? Shape{a.N, a.D * a.P} : Shape{a.T, a.B, a.D * a.P};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Arguments& a, bool save) {
  const Tensor y = empty_like_x(a, output_shape(a));
  const Tensor h_n = empty_like_x(a, {a.L * a.D, a.B, a.P});
  const bool lstm = a.cell == Cell::kLstm;
  const Tensor c_n = empty_like_x(a, lstm ? Shape{a.L * a.D, a.B, a.H} : Shape{0});
  // One size whatever the lengths, so that it is known without looking into them.
  const Tensor reserve =
      empty_like_x(a, {save ? reserve_size(a.cell, a.L, a.D, a.user_rows, a.H, a.P) : int64_t{0}});
  const Kernels& kernels = active_kernels();
  StackStorage<T> storage;
  Forward<T> call{};
  fill_stack(a, false, kernels.vector_bytes, storage, call);
  T* y_base = static_cast<T*>(y.mutable_data_ptr());
  zero_padding(a, y_base, a.D * a.P);
  call.y = rows_of(a, y_base, y, storage.y_offset);
  call.h_n = static_cast<T*>(h_n.mutable_data_ptr());
  call.c_n = lstm ? static_cast<T*>(c_n.mutable_data_ptr()) : nullptr;
  call.reserve = save ? static_cast<T*>(reserve.mutable_data_ptr()) : nullptr;
  if constexpr (std::is_same_v<T, float>) {
    run_team(call, kernels.forward_workspace_f32, kernels.forward_f32);
  } else {
    run_team(call, kernels.forward_workspace_f64, kernels.forward_f64);
  }
  return {y, h_n, c_n, reserve};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
    const Arguments& a, const std::optional<Tensor>& d_y, const std::optional<Tensor>& d_h_n,
    const std::optional<Tensor>& d_c_n, const Tensor& y, const Tensor& reserve, bool input_grad,
    bool weight_grad) {
  const bool lstm = a.cell == Cell::kLstm;
  const Tensor d_x = empty_like_x(a, !input_grad ? Shape{0}
                                     : a.packed  ? Shape{a.N, a.I}
                                                 : Shape{a.T, a.B, a.I});
  const Tensor d_h_0 = empty_like_x(a, {a.L * a.D, a.B, a.P});
  const Tensor d_c_0 = empty_like_x(a, lstm ? Shape{a.L * a.D, a.B, a.H} : Shape{0});
  std::vector<Tensor> d_weights;
  if (weight_grad)
    for (const Tensor& weight : a.weights) d_weights.push_back(empty_like_x(a, shape_of(weight)));

  const Kernels& kernels = active_kernels();
  StackStorage<T> storage;
  Backward<T> call{};
  fill_stack(a, true, kernels.vector_bytes, storage, call);
  const Tensor outputs = with_adjacent_features(y);
  call.y = rows_of(a, static_cast<const T*>(outputs.const_data_ptr()), outputs, storage.y_offset);
  call.reserve = static_cast<const T*>(reserve.const_data_ptr());
  std::optional<Tensor> d_outputs;
  if (d_y) {
    d_outputs = with_adjacent_features(*d_y);
    call.d_y = rows_of(a, static_cast<const T*>(d_outputs->const_data_ptr()), *d_outputs,
                       storage.d_y_offset);
  }
  const std::optional<Tensor> d_h = contiguous(d_h_n), d_c = contiguous(d_c_n);
  call.d_h_n = pointer<const T>(d_h);
  call.d_c_n = pointer<const T>(d_c);
  if (input_grad && d_x.numel() > 0) {
    T* base = static_cast<T*>(d_x.mutable_data_ptr());
    zero_padding(a, base, a.I);
    call.d_x = rows_of(a, base, d_x, storage.d_x_offset);
  }
  call.d_h_0 = static_cast<T*>(d_h_0.mutable_data_ptr());
  call.d_c_0 = lstm ? static_cast<T*>(d_c_0.mutable_data_ptr()) : nullptr;
  const std::vector<Weights<T>> pointers = weight_grad
                                               ? weight_pointers<T>(a, d_weights)
                                               : std::vector<Weights<T>>(a.L * a.D, Weights<T>{});
  call.d_weights = pointers.data();
  if constexpr (std::is_same_v<T, float>) {
    run_team(call, kernels.backward_workspace_f32, kernels.backward_f32);
  } else {
    run_team(call, kernels.backward_workspace_f64, kernels.backward_f64);
  }
  return {d_x, d_h_0, d_c_0, d_weights};
}

// ---- operators ------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn(Tensor x, Tensor h_0, std::optional<Tensor> c_0,
                                               std::vector<Tensor> weights,
                                               std::optional<Tensor> lengths,
                                               std::optional<Tensor> batch_sizes,
                                               std::optional<Tensor> resets,
                                               std::optional<Tensor> dropout_mask, std::string cell,
                                               int64_t num_layers, bool bidirectional, bool save) {
  const Arguments a(x, h_0, c_0, weights, lengths, batch_sizes, resets, dropout_mask, cell,
                    num_layers, bidirectional);
  return a.dtype == ScalarType::Float ? forward<float>(a, save) : forward<double>(a, save);
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> rnn_backward(
    std::optional<Tensor> d_y, std::optional<Tensor> d_h_n, std::optional<Tensor> d_c_n, Tensor x,
    Tensor h_0, std::optional<Tensor> c_0, std::vector<Tensor> weights,
    std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes, std::optional<Tensor> resets,
    std::optional<Tensor> dropout_mask, Tensor y, Tensor reserve, std::string cell,
    int64_t num_layers, bool bidirectional, bool input_grad, bool weight_grad) {
  const Arguments a(x, h_0, c_0, weights, lengths, batch_sizes, resets, dropout_mask, cell,
                    num_layers, bidirectional);
  check("y", y, a.dtype, output_shape(a));
  check("reserve", reserve, a.dtype, {reserve_size(a.cell, a.L, a.D, a.user_rows, a.H, a.P)});
  if (d_y) check("d_y", *d_y, a.dtype, output_shape(a));
  if (d_h_n) check("d_h_n", *d_h_n, a.dtype, {a.L * a.D, a.B, a.P});
  if (d_c_n) {
    require(a.cell == Cell::kLstm, "d_c_n: expected None for the cell ", cell, ", got a tensor");
    check("d_c_n", *d_c_n, a.dtype, {a.L * a.D, a.B, a.H});
  }
  return a.dtype == ScalarType::Float
             ? backward<float>(a, d_y, d_h_n, d_c_n, y, reserve, input_grad, weight_grad)
             : backward<double>(a, d_y, d_h_n, d_c_n, y, reserve, input_grad, weight_grad);
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("rnn", TORCH_BOX(&seq2seq_ext::rnn));
  m.impl("rnn_backward", TORCH_BOX(&seq2seq_ext::rnn_backward));
}
