// The operators on CPU tensors: checks every argument (glue/arguments.h), allocates, and calls the
// kernels on torch's threads (team_run.h). No kernel runs, and no memory is written, before all
// checks have passed.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "../glue/arguments.h"
#include "../glue/tensors.h"
#include "calls.h"
#include "compact.h"
#include "dispatch.h"
#include "kernels.h"
#include "packed.h"
#include "plan.h"
#include "scratch.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

// ---- what the kernels read ------------------------------------------------------------------

// Where compact rows lie in a dense tensor (T, B, features) with these strides. A table is made
// only where no single stride does.
template <typename T>
Rows<T> dense_rows(const CompactArguments& a, Scratch::Frame& frame, T* base, int64_t time,
                   int64_t batch) {
  if (a.row == nullptr) {
    if (a.T <= 1 || time == a.B * batch) return {base, nullptr, batch};
    if (a.B <= 1) return {base, nullptr, time};
  }
  int64_t* table = frame.take<int64_t>(a.N);
  for (int64_t t = 0, r = 0; t < a.T; ++t)
    for (int64_t b = 0; b < a.active[t]; ++b)
      table[r++] = t * time + (a.source ? a.source[b] : b) * batch;
  return {base, table, 0};
}

// The same in a tensor shaped like x, with any strides but adjacent features.
template <typename T>
Rows<T> rows_of(const CompactArguments& a, Scratch::Frame& frame, T* base, const View& view) {
  if (a.form != Form::kDense) return {base, nullptr, view.stride[0]};
  return dense_rows(a, frame, base, view.stride[0], view.stride[1]);
}

// The same in a contiguous one.
template <typename T>
Rows<T> new_rows(const CompactArguments& a, Scratch::Frame& frame, T* base, int64_t features) {
  if (a.form != Form::kDense) return {base, nullptr, features};
  return dense_rows(a, frame, base, a.B * features, features);
}

// Zeros in the rows of a contiguous tensor (T, B, features) that lie behind the end of a sequence.
template <typename T>
void zero_padding(const CompactArguments& a, T* base, int64_t features) {
  if (a.lengths == nullptr) return;
  for (int64_t b = 0; b < a.B; ++b)
    for (int64_t t = a.lengths[b]; t < a.T; ++t)
      std::fill_n(base + (t * a.B + b) * features, features, T(0));
}

template <typename T>
void fill_stack(const CompactArguments& a, Scratch::Frame& frame, bool backward,
                std::optional<WeightType> packed, int vector_bytes, Stack<T>& stack) {
  fill_layers(a, frame, stack);
  stack.sequence = {a.T, a.B, a.N, a.active, a.offset, a.source, a.reset};
  const Problem problem{a.cell, backward, packed, a.T, a.B,       a.N,         a.I,
                        a.H,    a.P,      a.L,    a.D, sizeof(T), vector_bytes};
  stack.plan = make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
  stack.x = rows_of(a, frame, static_cast<const T*>(a.x.data()), a.x);
  stack.mask_layer = 0;
  if (a.dropout_mask && a.L > 1) {
    const int64_t width = a.D * a.P;
    stack.mask_layer = a.user_rows * width;
    stack.dropout_mask = new_rows(a, frame, static_cast<const T*>(a.dropout_mask.data()), width);
  }
  stack.h_0 = static_cast<const T*>(a.h_0.data());
  stack.c_0 = static_cast<const T*>(a.c_0.data());
}

// ---- forward --------------------------------------------------------------------------------

template <typename T>
T* data(const Handle& tensor) {
  return static_cast<T*>(data_of(tensor));
}

// Rows of a table of TokenGates as the layers read them.
template <typename T>
Rows<const T> token_rows(const CompactArguments& a, Scratch::Frame& frame, const int64_t* tokens,
                         const void* table, int64_t width) {
  int64_t* at = frame.take<int64_t>(a.N);
  for (int64_t r = 0; r < a.N; ++r) at[r] = tokens[a.row ? a.row[r] : r] * width;
  return {static_cast<const T*>(table), at, 0};
}

// `table`: in place of x, what was packed for given.rows; or null.
template <typename T>
Outputs forward(CompactArguments& a, const ForwardGiven& given, const PackedBlock& packed,
                const void* table) {
  const bool save = given.save;
  const bool lstm = a.cell == Cell::kLstm;
  const bool step = a.form == Form::kStep;
  Outputs out(a, save);
  Scratch::Frame frame;
  a.arrange(frame);
  const Kernels& kernels = active_kernels();
  Forward<T> call{};
  const auto packed_type = packed.memory ? std::optional(packed.type) : std::nullopt;
  fill_stack(a, frame, false, packed_type, kernels.vector_bytes, call);
  call.packed = packed.memory;
  call.packed_type = packed.type;
  const auto of_type = [](auto f32, auto f64) {
    if constexpr (std::is_same_v<T, float>)
      return f32;
    else
      return f64;
  };
  if (table != nullptr) {
    const auto width = of_type(kernels.token_gates_width_f32, kernels.token_gates_width_f64);
    call.gates = token_rows<T>(a, frame, given.rows->tokens, table, width(call));
  }
  T* y = data<T>(out.y);
  zero_padding(a, y, a.D * a.P);
  call.y = new_rows(a, frame, y, a.D * a.P);
  call.h_n = step ? y : data<T>(out.h_n);  // the same numbers: written twice, never read
  call.c_n = lstm ? data<T>(out.c_n) : nullptr;
  call.reserve = save ? data<T>(out.reserve) : nullptr;
  run_team(call, of_type(kernels.forward_workspace_f32, kernels.forward_workspace_f64),
           of_type(kernels.forward_f32, kernels.forward_f64));
  return out;
}

// ---- backward -------------------------------------------------------------------------------

// Memory of a state's gradient: the tensor's, or scratch where nobody wants it.
template <typename T>
T* state_gradient(const CompactArguments& a, Scratch::Frame& frame, bool wanted,
                  const Handle& tensor, int64_t features) {
  return wanted ? data<T>(tensor) : frame.take<T>(a.L * a.D * a.B * features);
}

template <typename T>
Gradients backward(CompactArguments& a, const BackwardGiven& given) {
  const Cotangents d(given, a);
  const View y(given.y), reserve(given.reserve);
  const bool lstm = a.cell == Cell::kLstm;
  Gradients out(a, given);
  Scratch::Frame frame;
  a.arrange(frame);
  const Kernels& kernels = active_kernels();
  Backward<T> call{};
  fill_stack(a, frame, true, std::nullopt, kernels.vector_bytes, call);
  const View outputs = a.with_adjacent_features(a.widened(y));
  call.y = rows_of(a, frame, static_cast<const T*>(outputs.data()), outputs);
  call.reserve = static_cast<const T*>(reserve.data());
  if (d.y) {
    const View d_y = a.with_adjacent_features(a.widened(d.y));
    call.d_y = rows_of(a, frame, static_cast<const T*>(d_y.data()), d_y);
  }
  call.d_h_n = static_cast<const T*>(a.contiguous(a.widened(d.h_n)).data());
  call.d_c_n = static_cast<const T*>(a.contiguous(a.widened(d.c_n)).data());
  if (out.input_wanted && a.x.numel() > 0) {
    T* d_x = data<T>(out.x);
    zero_padding(a, d_x, a.I);
    call.d_x = new_rows(a, frame, d_x, a.I);
  }
  call.d_h_0 = state_gradient<T>(a, frame, out.state_wanted, out.h_0, a.P);
  call.d_c_0 = lstm ? state_gradient<T>(a, frame, out.state_wanted, out.c_0, a.H) : nullptr;
  call.d_weights = weight_pointers<T>(
      a, frame, [&](int64_t i) { return out.weights_wanted ? data_of(out.weights[i]) : nullptr; });
  if constexpr (std::is_same_v<T, float>) {
    run_team(call, kernels.backward_workspace_f32, kernels.backward_f32);
  } else {
    run_team(call, kernels.backward_workspace_f64, kernels.backward_f64);
  }
  return out;
}

// ---- operators ------------------------------------------------------------------------------

// Boxed by hand: TORCH_BOX would copy every argument once more. The order is that of ops.cpp.

void rnn(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] { run_forward(ForwardGiven(stack)).put(stack); });
}

void prepack(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const std::vector<Handle> weights = read.tensors();
    const int64_t cell = read.integer(), num_layers = read.integer();
    const bool bidirectional = read.boolean();
    const auto dtype = read.optional_dtype();
    if (weights.empty()) fail("weights: expected 2 to 5 tensors for each layer, got none");
    const View first(weights[0]);
    if (first.dim != 2) fail("weights[0]: expected 2 dimensions, got shape ", first);
    Layers layers(weights, cell, num_layers, bidirectional, first, first.size[1]);
    stack[0] = result(pack(layers, weights, weight_type_of(dtype, layers)));
  });
}

void prepack_tokens(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const Handle given = read.tensor();
    const std::vector<Handle> weights = read.tensors();
    const Handle packed = read.tensor();
    const int64_t cell = read.integer(), num_layers = read.integer();
    const bool bidirectional = read.boolean();
    const View embedding = embedding_of(given);
    if (!is_contiguous(embedding)) fail("embedding: expected a contiguous tensor");
    const Layers layers(weights, cell, num_layers, bidirectional, embedding, embedding.size[1]);
    if (layers.dtype != layers.computed) fail("embedding: expected dtype Float or Double");
    // That it was made of these weights as they are: 1024 steps look at all of them.
    const PackedBlock block = packed_block(layers, View(packed), 0, 1024);
    stack[0] = result(pack_tokens(layers, embedding, block));
  });
}

void rnn_backward(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    const BackwardGiven given(stack);
    CompactArguments a(given);
    a.widen_weights(given.weights);
    Gradients out = a.in_float() ? backward<float>(a, given) : backward<double>(a, given);
    std::move(out).put(stack);
  });
}

}  // namespace

Outputs run_forward(const ForwardGiven& given) {
  CompactArguments a(given);
  PackedBlock block;
  const void* table = nullptr;
  const int64_t steps = std::max<int64_t>(a.T, 1);
  if (given.packed) {
    if (given.save)
      fail("packed: expected None with save, for backward reads the weights themselves");
    if (given.turn < 0) fail("turn: expected a number of steps, got ", given.turn);
    block = packed_block(a, View(given.packed), given.turn, steps);
    if (given.rows)
      table = packed_tokens(a, given.rows->embedding, given.rows->packed, given.turn, steps);
  }
  if (!block.memory) a.widen_weights(given.weights);
  return a.in_float() ? forward<float>(a, given, block, table)
                      : forward<double>(a, given, block, table);
}

}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("rnn", &seq2seq_ext::rnn);
  m.impl("prepack", &seq2seq_ext::prepack);
  m.impl("prepack_tokens", &seq2seq_ext::prepack_tokens);
  m.impl("rnn_backward", &seq2seq_ext::rnn_backward);
}
