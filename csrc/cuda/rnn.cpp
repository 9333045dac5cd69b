// The operators on CUDA tensors: checks every argument (glue/arguments.h), allocates, multiplies
// what does not depend on the step before by torch's matrix products, and leaves the recurrence to
// the kernels (kernels.h). Nothing waits for the device, so that a call can be captured into a
// graph.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "../glue/arguments.h"
#include "../glue/tensors.h"
#include "kernels.h"
#include "numbers.h"
#include "runtime.h"
#include "sequences.h"

namespace seq2seq_ext::cuda {
namespace {

std::mutex forced_mutex;
Forced forced_plan;

Forced forced_now() {
  const std::lock_guard lock(forced_mutex);
  return forced_plan;
}

template <typename T>
constexpr Number kNumber = std::is_same_v<T, __half>          ? Number::kHalf
                           : std::is_same_v<T, __nv_bfloat16> ? Number::kBfloat16
                           : std::is_same_v<T, float>         ? Number::kFloat
                                                              : Number::kDouble;

// ---- one call -----------------------------------------------------------------------------------

// What the layers of a call share.
template <typename T>
class Call {
 public:
  Call(Arguments& a, bool allow_tf32)
      : a(a), run(a.device, a.dtype), tf32(allow_tf32), gates(num_gates(a.cell) * a.H) {
    const Sequences sequences = sequences_of(a, run);
    steps = {a.T,
             a.B,
             a.user_rows,
             sequences.length,
             sequences.offset,
             static_cast<const uint8_t*>(a.resets.data())};
  }

  const T* weight(int64_t l, int64_t d, int64_t role) const {
    return static_cast<const T*>(a.weights[(l * a.D + d) * a.roles() + role]);
  }
  int64_t features(int64_t l) const { return l == 0 ? a.I : a.D * a.P; }

  // The weights of one role in all directions, one below the other.
  const T* all_directions(int64_t l, int64_t role, int64_t numbers) {
    if (a.D == 1) return weight(l, 0, role);
    T* both = run.template take<T>(a.D * numbers);
    for (int64_t d = 0; d < a.D; ++d)
      run.copy(both + d * numbers, weight(l, d, role), numbers * sizeof(T));
    return both;
  }

  void fill_layer(int64_t l, Layer<T>& layer) const {
    layer.cell = a.cell;
    layer.steps = steps;
    layer.H = a.H, layer.P = a.P, layer.D = a.D;
    for (int64_t d = 0; d < a.D; ++d) {
      layer.w_hh[d] = weight(l, d, 1);
      layer.b_ih[d] = a.bias ? weight(l, d, 2) : nullptr;
      layer.b_hh[d] = a.bias ? weight(l, d, 3) : nullptr;
    }
    const int64_t first = l * a.D * a.B;
    layer.h_0 = a.h_0 ? static_cast<const T*>(a.h_0.data()) + first * a.P : nullptr;
    layer.c_0 = a.c_0 ? static_cast<const T*>(a.c_0.data()) + first * a.H : nullptr;
  }

  Plan plan(bool backward) const {
    return make_plan({a.cell, kNumber<T>, tf32, backward, a.T, a.B, a.H, a.P, a.D},
                     run.properties(), forced_now());
  }

  // Rows of `features` numbers in an exchange with `slots` of them: in place where pieces of 16
  // bytes lie in the rows of `memory`, which is (rows, D, slots * features); else in memory of
  // their own.
  Exchange<T> exchange(T* memory, int64_t slots, int64_t features) {
    const int64_t padded = padded_to_pieces<T>(features);
    const bool in_place = padded == features && reinterpret_cast<uintptr_t>(memory) % 16 == 0;
    const int64_t width = slots * padded, count = steps.rows * a.D * width;
    T* base = in_place ? memory : run.template take<T>(count);
    run.fill(base, count * sizeof(T), 0xff);
    return {base, a.D * width, width};
  }

  // The rows of layer l's input: the outputs of the layer below times the dropout mask.
  const T* masked_input(int64_t l, const T* below) {
    if (!a.dropout_mask) return below;
    const int64_t width = a.D * a.P;
    T* masked = run.template take<T>(steps.rows * width);
    const T* mask = static_cast<const T*>(a.dropout_mask.data()) + (l - 1) * steps.rows * width;
    check(clean_rows(steps, below, mask, width, masked, run.stream()));
    return masked;
  }

  int64_t slots_size() const {
    return a.D * steps.rows * reserve_slots(a.cell) * padded_units(a.H);
  }
  template <typename Pointer>
  Pointer reserve_outputs(Pointer reserve, int64_t l) const {
    return reserve + a.L * slots_size() + l * steps.rows * a.D * a.P;
  }

  // The same matrix for each direction, `numbers` apart: one batched product serves all.
  Matrix per_direction(const T* data, int64_t rows, int64_t columns, int64_t numbers) const {
    return {const_cast<T*>(data), rows, columns, columns, a.D, numbers};
  }

  Arguments& a;
  Runtime run;
  Steps steps;
  bool tf32;
  int64_t gates;  // G*H
};

// ---- forward ------------------------------------------------------------------------------------

template <typename T>
T* data(const Handle& tensor) {
  return static_cast<T*>(data_of(tensor));
}

template <typename T>
void general_forward(Call<T>& call, int64_t l, const Forward<T>& f) {
  const Arguments& a = call.a;
  Runtime& run = call.run;
  const bool reset_before = a.cell == Cell::kGruResetBefore;
  const int64_t D = a.D, B = a.B, H = a.H, P = a.P;
  const int64_t rows = reset_before ? 2 * H : call.gates;  // of w_hh, multiplied by h itself
  const T* w_hh = call.all_directions(l, 1, call.gates * P);
  T* sums = run.template filled<T>(D * B * rows, 0);
  ForwardStep<T> step{};
  step.h = run.template take<T>(D * B * P);
  step.sums = sums;
  step.carry = run.template take<Accumulator<T>>(D * B * H);
  T *sums_n = nullptr, *projected = nullptr;
  if (reset_before || a.projected) step.inner = run.template take<T>(D * B * H);
  if (reset_before) step.sums_n = sums_n = run.template take<T>(D * B * H);
  const T* w_hr = nullptr;
  if (a.projected) {
    step.projected = projected = run.template take<T>(D * B * P);
    w_hr = call.all_directions(l, a.roles() - 1, P * H);
  }
  const Matrix h = call.per_direction(step.h, B, P, B * P);
  const Matrix weights = call.per_direction(w_hh, rows, P, call.gates * P).transposed();
  check(start_forward(f, step, run.stream()));
  for (int64_t s = 0; s < a.T; ++s) {
    if (s > 0 || f.h_0 != nullptr)
      run.multiply(call.per_direction(sums, B, rows, B * rows), h, weights);
    if (reset_before) {
      check(apply_reset_gate(f, step, s, run.stream()));
      run.multiply(call.per_direction(sums_n, B, H, B * H),
                   call.per_direction(step.inner, B, H, B * H),
                   call.per_direction(w_hh + 2 * H * P, H, P, call.gates * P).transposed());
    }
    check(step_forward(f, step, s, run.stream()));
    if (a.projected) {
      run.multiply(call.per_direction(projected, B, P, B * P),
                   call.per_direction(step.inner, B, H, B * H),
                   call.per_direction(w_hr, P, H, P * H).transposed());
      check(project_forward(f, step, s, run.stream()));
    }
  }
}

// All launches of a plan. False where the device has no room for its blocks at a time, as when it
// is shared with other processes: then nothing has been launched.
template <typename Launch>
bool launched(const Plan& plan, const Launch& launch) {
  Layout layout = plan.layout;
  for (int i = 0; i < plan.launches; ++i, layout.first += layout.rows()) {
    const cudaError_t error = launch(layout);
    if (i == 0 && error == cudaErrorCooperativeLaunchTooLarge) {
      cudaGetLastError();  // or the next who asks is told of it
      return false;
    }
    check(error);
  }
  return true;
}

template <typename T>
void forward_layer(Call<T>& call, int64_t l, const T* x, Forward<T>& f) {
  const Arguments& a = call.a;
  Runtime& run = call.run;
  call.fill_layer(l, f);
  const int64_t rows = call.steps.rows, width = a.D * call.gates, features = call.features(l);
  T* sums = run.template take<T>(rows * width);
  const T* w_ih = call.all_directions(l, 0, call.gates * features);
  run.multiply({sums, rows, width, width}, {const_cast<T*>(x), rows, features, features},
               Matrix{const_cast<T*>(w_ih), width, features, features}.transposed());
  f.x = sums;
  const Plan plan = call.plan(false);
  if (!plan.persistent) return general_forward(call, l, f);
  f.h = call.exchange(f.y, 1, a.H);
  if (f.h_0 != nullptr) {
    T* start = run.template take<T>(a.D * a.B * padded_to_pieces<T>(a.H));
    check(pad_states(f.h_0, a.D * a.B, a.H, start, run.stream()));
    f.h_start = start;
  }
  if (!launched(plan, [&](const Layout& layout) {
        return persistent_forward(f, layout, plan.tensor, run.stream());
      }))
    general_forward(call, l, f);
}

template <typename T>
Outputs forward(Arguments& a, const ForwardGiven& given) {
  const bool lstm = a.cell == Cell::kLstm, step = a.form == Form::kStep;
  Outputs out(a, given.save);
  if (a.B == 0) return out;
  Call<T> call(a, given.allow_tf32);
  const View input = a.contiguous(a.x);
  const T* x = static_cast<const T*>(input.data());
  T* reserve = given.save ? data<T>(out.reserve) : nullptr;
  // Nothing reads the padding behind H units, but two equal calls are to have equal results.
  if (reserve && a.H % kUnitPadding != 0)
    call.run.fill(reserve, a.reserve_elements() * static_cast<int64_t>(sizeof(T)), 0);
  for (int64_t l = 0; l < a.L; ++l) {
    if (l > 0) x = call.masked_input(l, x);
    Forward<T> f{};
    f.y = l == a.L - 1 ? data<T>(out.y)
          : reserve    ? call.reserve_outputs(reserve, l)
                       : call.run.template take<T>(call.steps.rows * a.D * a.P);
    f.h_n = step ? call.run.template take<T>(a.B * a.P) : data<T>(out.h_n) + l * a.D * a.B * a.P;
    f.c_n = lstm ? data<T>(out.c_n) + l * a.D * a.B * a.H : nullptr;
    f.reserve = reserve ? reserve + l * call.slots_size() : nullptr;
    forward_layer(call, l, x, f);
    x = f.y;
  }
  return out;
}

// ---- backward -----------------------------------------------------------------------------------

// Rows that the recurrence leaves for the products over all steps.
template <typename T>
struct LayerGradients {
  T* d_h;       // (rows, D, G*H) of W_hh h
  T* d_x;       // (rows, D, G*H) of W_ih x
  T* d_h_rows;  // (D, rows, P) of a projected h
};

template <typename T>
void general_backward(Call<T>& call, int64_t l, const Backward<T>& f, T* d_h_rows) {
  const Arguments& a = call.a;
  Runtime& run = call.run;
  const bool reset_before = a.cell == Cell::kGruResetBefore;
  const int64_t D = a.D, B = a.B, H = a.H, P = a.P;
  const int64_t rows = reset_before ? 2 * H : call.gates;
  const T* w_hh = call.all_directions(l, 1, call.gates * P);
  T* recurrent = run.template filled<T>(D * B * P, 0);
  BackwardStep<T> step{};
  step.recurrent = recurrent;
  step.d_sums = run.template take<T>(D * B * rows);
  step.carry = run.template take<Accumulator<T>>(D * B * H);
  T *d_reset_h = nullptr, *d_inner = nullptr;
  if (reset_before) {
    step.d_n = run.template take<T>(D * B * H);
    step.d_reset_h = d_reset_h = run.template take<T>(D * B * H);
  }
  const T* w_hr = nullptr;
  if (a.projected) {
    step.d_projected = run.template take<T>(D * B * P);
    step.d_inner = d_inner = run.template take<T>(D * B * H);
    step.d_h_rows = d_h_rows;
    w_hr = call.all_directions(l, a.roles() - 1, P * H);
  }
  for (int64_t s = a.T - 1; s >= -1; --s) {
    if (a.projected) {
      check(project_backward(f, step, s, run.stream()));
      if (s >= 0)
        run.multiply(call.per_direction(d_inner, B, H, B * H),
                     call.per_direction(step.d_projected, B, P, B * P),
                     call.per_direction(w_hr, P, H, P * H));
    }
    check(step_backward(f, step, s, run.stream()));
    if (s < 0) break;
    if (reset_before) {
      run.multiply(call.per_direction(d_reset_h, B, H, B * H),
                   call.per_direction(step.d_n, B, H, B * H),
                   call.per_direction(w_hh + 2 * H * P, H, P, call.gates * P));
      check(reset_gate_backward(f, step, s, run.stream()));
    }
    run.multiply(call.per_direction(recurrent, B, P, B * P),
                 call.per_direction(step.d_sums, B, rows, B * rows),
                 call.per_direction(w_hh, rows, P, call.gates * P));
  }
}

// The recurrence backwards: fills `f` up, and the rows.
template <typename T>
LayerGradients<T> backward_layer(Call<T>& call, int64_t l, Backward<T>& f) {
  const Arguments& a = call.a;
  Runtime& run = call.run;
  const int64_t rows = call.steps.rows, count = rows * a.D * call.gates;
  LayerGradients<T> out{};
  out.d_h = out.d_x = run.template take<T>(count);
  if (a.cell == Cell::kGru) f.d_x = out.d_x = run.template take<T>(count);
  const Plan plan = call.plan(true);
  if (!plan.persistent) {
    f.d_h = out.d_h;
    if (a.projected) out.d_h_rows = run.template take<T>(a.D * rows * a.P);
    general_backward(call, l, f, out.d_h_rows);
    return out;
  }
  f.d_sum = call.exchange(out.d_h, num_gates(a.cell), a.H);
  f.d_h = f.d_sum.base == out.d_h ? nullptr : out.d_h;
  if (!launched(plan, [&](const Layout& layout) {
        return persistent_backward(f, layout, plan.tensor, run.stream());
      })) {
    f.d_h = out.d_h;
    general_backward(call, l, f, out.d_h_rows);
  }
  return out;
}

// Gradients of a layer's weights: products over all steps.
template <typename T>
void weight_gradients(Call<T>& call, int64_t l, const Backward<T>& f, const LayerGradients<T>& d,
                      const T* x, const std::vector<Handle>& weights) {
  const Arguments& a = call.a;
  Runtime& run = call.run;
  const int64_t rows = call.steps.rows, H = a.H, P = a.P, width = a.D * call.gates;
  const int64_t features = call.features(l);
  const bool reset_before = a.cell == Cell::kGruResetBefore;
  T* entering = run.template take<T>(a.D * rows * P);
  T* inner = reset_before || a.projected ? run.template take<T>(a.D * rows * H) : nullptr;
  check(entering_states(f, entering, inner, run.stream()));
  for (int64_t direction = 0; direction < a.D; ++direction) {
    const auto gradient = [&](int64_t role) {
      return data<T>(weights[(l * a.D + direction) * a.roles() + role]);
    };
    T* const d_x = d.d_x + direction * call.gates;
    T* const d_h = d.d_h + direction * call.gates;
    const auto product = [&](T* out, int64_t out_rows, T* left, int64_t left_stride, const T* right,
                             int64_t columns) {
      run.multiply({out, out_rows, columns, columns},
                   Matrix{left, rows, out_rows, left_stride}.transposed(),
                   {const_cast<T*>(right), rows, columns, columns});
    };
    product(gradient(0), call.gates, d_x, width, x, features);
    const T* h = entering + direction * rows * P;
    if (reset_before) {
      product(gradient(1), 2 * H, d_h, width, h, P);
      product(gradient(1) + 2 * H * P, H, d_h + 2 * H, width, inner + direction * rows * H, H);
    } else {
      product(gradient(1), call.gates, d_h, width, h, P);
    }
    if (a.bias) {
      const bool same = d.d_x == d.d_h;
      check(sum_rows(d_x, rows, call.gates, width, gradient(2), same ? gradient(3) : nullptr,
                     run.stream()));
      if (!same)
        check(sum_rows<T>(d_h, rows, call.gates, width, gradient(3), nullptr, run.stream()));
    }
    if (a.projected)
      product(gradient(a.roles() - 1), P, d.d_h_rows + direction * rows * P, P,
              inner + direction * rows * H, H);
  }
}

template <typename T>
Gradients backward(Arguments& a, const BackwardGiven& given) {
  const Cotangents d(given, a);
  const bool lstm = a.cell == Cell::kLstm;
  Gradients out(a, given);
  Call<T> call(a, given.allow_tf32);
  Runtime& run = call.run;
  if (a.B == 0 || call.steps.rows == 0) {
    for (size_t i = 0; i < out.weights.size(); ++i) {
      const View weight(out.weights[i]);
      run.fill(data_of(out.weights[i]), weight.numel() * element_size(a.dtype), 0);
    }
    if (out.state_wanted) {
      const auto copy_or_zero = [&](const Handle& to, const View& from, int64_t features) {
        const int64_t bytes = a.L * a.D * a.B * features * static_cast<int64_t>(sizeof(T));
        if (from) {
          run.copy(data_of(to), a.contiguous(from).data(), bytes);
        } else {
          run.fill(data_of(to), bytes, 0);
        }
      };
      copy_or_zero(out.h_0, d.h_n, a.P);
      if (lstm) copy_or_zero(out.c_0, d.c_n, a.H);
    }
    return out;
  }
  const int64_t rows = call.steps.rows, width = a.D * a.P;
  const View y(given.y), reserve_view(given.reserve);
  const T* reserve = static_cast<const T*>(a.contiguous(reserve_view).data());
  const T* outputs = static_cast<const T*>(a.contiguous(y).data());
  const T* d_y = static_cast<const T*>(a.contiguous(d.y).data());
  const T* d_h_n = static_cast<const T*>(a.contiguous(d.h_n).data());
  const T* d_c_n = static_cast<const T*>(a.contiguous(d.c_n).data());
  const int64_t states = a.L * a.D * a.B;
  T* d_h_0 = out.state_wanted ? data<T>(out.h_0) : run.template take<T>(states * a.P);
  T* d_c_0 = !lstm              ? nullptr
             : out.state_wanted ? data<T>(out.c_0)
                                : run.template take<T>(states * a.H);

  for (int64_t l = a.L - 1; l >= 0; --l) {
    Backward<T> f{};
    call.fill_layer(l, f);
    const int64_t first = l * a.D * a.B;
    f.y = l == a.L - 1 ? outputs : call.reserve_outputs(reserve, l);
    f.reserve = reserve + l * call.slots_size();
    f.d_y = d_y;
    f.d_h_n = d_h_n ? d_h_n + first * a.P : nullptr;
    f.d_c_n = d_c_n ? d_c_n + first * a.H : nullptr;
    f.d_h_0 = d_h_0 + first * a.P;
    f.d_c_0 = d_c_0 ? d_c_0 + first * a.H : nullptr;
    const LayerGradients<T> gradients = backward_layer(call, l, f);

    if (out.weights_wanted) {
      const T* x;
      if (l > 0) {
        x = call.masked_input(l, call.reserve_outputs(reserve, l - 1));
      } else {
        x = static_cast<const T*>(a.contiguous(a.x).data());
        // Padding may hold anything, and 0 times NaN is NaN.
        if (call.steps.length != nullptr && call.steps.offset == nullptr) {
          T* clean = run.template take<T>(rows * a.I);
          check(clean_rows<T>(call.steps, x, nullptr, a.I, clean, run.stream()));
          x = clean;
        }
      }
      weight_gradients(call, l, f, gradients, x, out.weights);
    }
    if (l == 0 && !out.input_wanted) break;
    const int64_t features = call.features(l);
    T* d_x = l == 0 ? data<T>(out.x) : run.template take<T>(rows * width);
    const int64_t sums = a.D * call.gates;
    run.multiply({d_x, rows, features, features}, {gradients.d_x, rows, sums, sums},
                 {const_cast<T*>(call.all_directions(l, 0, call.gates * features)), sums, features,
                  features});
    d_y = l == 0 ? nullptr : call.masked_input(l, d_x);
  }
  return out;
}

// ---- operators ----------------------------------------------------------------------------------

void rnn(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    const ForwardGiven given(stack);
    Arguments a(given);
    if (given.packed) fail("packed: expected None on CUDA");
    Outputs out =
        with_number(a.dtype, [&](auto number) { return forward<decltype(number)>(a, given); });
    std::move(out).put(stack);
  });
}

void rnn_backward(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    const BackwardGiven given(stack);
    Arguments a(given);
    Gradients out =
        with_number(a.dtype, [&](auto number) { return backward<decltype(number)>(a, given); });
    std::move(out).put(stack);
  });
}

void force_plan(StableIValue* stack, uint64_t, uint64_t) {
  ArgumentReader read(stack);
  const int64_t way = read.integer();
  Forced forced;
  forced.general = way == 1;
  forced.persistent = way == 2;
  // Beyond these bounds every number is as good as the bound.
  for (int* field : {&forced.tiles, &forced.slices, &forced.groups, &forced.rows})
    *field = static_cast<int>(std::clamp<int64_t>(read.integer(), -1, int64_t{1} << 30));
  check(forced);
  const std::lock_guard lock(forced_mutex);
  forced_plan = forced;
}

}  // namespace
}  // namespace seq2seq_ext::cuda

#ifdef SEQ2SEQ_EXT_CUDA_ON_CPU
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CUDA, m) {
#endif
  m.impl("rnn", &seq2seq_ext::cuda::rnn);
  m.impl("rnn_backward", &seq2seq_ext::cuda::rnn_backward);
}

STABLE_TORCH_LIBRARY_FRAGMENT(seq2seq_ext, m) {
  m.def("force_cuda_plan(int way, int tiles, int slices, int groups, int rows) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CompositeExplicitAutograd, m) {
  m.impl("force_cuda_plan", &seq2seq_ext::cuda::force_plan);
}
