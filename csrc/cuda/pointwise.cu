// The general path: what a step does beside its matrix products, which are a library's. One thread
// for each hidden unit of each sequence and direction, the units side by side.
//
// This is the way of what the persistent kernels do not run: weights too large for the device, a
// device that cannot launch cooperatively, projections, and the GRU of Cho et al. (2014), whose
// reset gate comes before a second product in every step.
#include "elementwise.cuh"
#include "steps.cuh"

namespace seq2seq_ext::cuda {
namespace {

// A unit of a sequence in a direction; the thread may be past the end.
struct Unit {
  int d, b, u;
  bool there;
  int64_t at;  // in a (D, B, features) matrix

  __device__ __forceinline__ Unit(int64_t D, int64_t B, int64_t features) {
    at = thread_number();
    u = static_cast<int>(at % features);
    b = static_cast<int>(at / features % B);
    d = static_cast<int>(at / features / B);
    there = d < D;
  }
};

// The time of step s in the order of reading; s = -1 is the state before the first step.
__device__ __forceinline__ int time_of(const Steps& steps, int64_t s, int d) {
  return static_cast<int>(d == 0 ? s : steps.T - 1 - s);
}

// What W_hh reads in the step after `at`: h, h_0 where the sequence begins there, 0 after a reset.
template <typename T>
__device__ __forceinline__ T entering(const Forward<T>& a, const Position& next, int b, int u,
                                      int d, T h) {
  if (!next.active || next.reset) return narrow<T>(0);
  if (next.index > 0) return h;
  return a.h_0 == nullptr ? narrow<T>(0) : a.h_0[(d * a.steps.B + b) * a.P + u];
}

// Writes h of a step: y, h_n, and the state entering the next step.
template <typename T>
__device__ __forceinline__ void leave(const Forward<T>& a, const Position& at, int64_t s, int b,
                                      int u, int d, T h, T* state) {
  if (!at.active) h = narrow<T>(0);
  const int t = time_of(a.steps, s, d);
  if (a.steps.offset == nullptr || t < length_of(a.steps, b))
    a.y[row_of(a.steps, t, b) * a.D * a.P + d * a.P + u] = h;
  const int64_t to = (d * a.steps.B + b) * a.P + u;
  if (at.active && at.index == at.length - 1) a.h_n[to] = h;
  state[to] = entering(a, position(a.steps, time_of(a.steps, s + 1, d), b, d), b, u, d, h);
}

// ---- forward ----------------------------------------------------------------------------------

template <typename T>
__global__ void start_kernel(const Forward<T> a, const ForwardStep<T> step) {
  const Unit unit(a.D, a.steps.B, a.P);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b;
  const Position first = position(a.steps, time_of(a.steps, 0, d), b, d);
  step.h[unit.at] = entering(a, first, b, unit.u, d, narrow<T>(0));
  if (length_of(a.steps, b) > 0) return;
  a.h_n[unit.at] = a.h_0 == nullptr ? narrow<T>(0) : a.h_0[unit.at];
  if (a.cell != Cell::kLstm) return;
  for (int64_t u = unit.u; u < a.H; u += a.P) {
    const int64_t at = (d * a.steps.B + b) * a.H + u;
    a.c_n[at] = a.c_0 == nullptr ? narrow<T>(0) : a.c_0[at];
  }
}

template <typename C, typename T>
__global__ void step_kernel(const Forward<T> a, const ForwardStep<T> step, int64_t s) {
  const Unit unit(a.D, a.steps.B, a.H);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b, u = unit.u;
  const Position at = position(a.steps, time_of(a.steps, s, d), b, d);
  T h = narrow<T>(0);
  if (at.active) {
    Accumulator<T> x[C::kGates], sums[C::kGates];
    const Biases<C, T> bias = biases_of<C>(a, u, d);
    load_inputs<C>(a, bias, at, u, d, x);
    for (int g = 0; g < C::kGates; ++g)
      sums[g] = widen(step.sums[((d * a.steps.B + b) * C::kGates + g) * a.H + u]);
    h = narrow<T>(forward_unit<C>(a, bias, at, b, u, d, x, sums, step.carry[unit.at]));
  }
  if (step.projected == nullptr) {
    leave(a, at, s, b, u, d, h, step.h);
  } else {
    step.inner[unit.at] = h;
  }
}

template <typename T>
__global__ void project_kernel(const Forward<T> a, const ForwardStep<T> step, int64_t s) {
  const Unit unit(a.D, a.steps.B, a.P);
  if (!unit.there) return;
  const Position at = position(a.steps, time_of(a.steps, s, unit.d), unit.b, unit.d);
  leave(a, at, s, unit.b, unit.u, unit.d, step.projected[unit.at], step.h);
}

// ---- the GRU with reset before -----------------------------------------------------------------

// The gate g of r and z, from the sums (D, B, 2H).
template <typename T>
__device__ __forceinline__ Accumulator<T> early_gate(const Forward<T>& a,
                                                     const ForwardStep<T>& step, const Position& at,
                                                     int b, int u, int d, int g) {
  auto sum = widen(a.x[((at.row * a.D + d) * 3 + g) * a.H + u]) +
             widen(step.sums[((d * a.steps.B + b) * 2 + g) * a.H + u]);
  if (a.b_ih[d] != nullptr) sum += widen(a.b_ih[d][g * a.H + u]) + widen(a.b_hh[d][g * a.H + u]);
  return Functions<T>::sigmoid(sum);
}

template <typename T>
__global__ void apply_reset_kernel(const Forward<T> a, const ForwardStep<T> step, int64_t s) {
  const Unit unit(a.D, a.steps.B, a.H);
  if (!unit.there) return;
  const Position at = position(a.steps, time_of(a.steps, s, unit.d), unit.b, unit.d);
  step.inner[unit.at] =
      at.active
          ? narrow<T>(early_gate(a, step, at, unit.b, unit.u, unit.d, 0) * widen(step.h[unit.at]))
          : narrow<T>(0);
}

template <typename T>
__global__ void reset_before_kernel(const Forward<T> a, const ForwardStep<T> step, int64_t s) {
  const Unit unit(a.D, a.steps.B, a.H);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b, u = unit.u;
  const Position at = position(a.steps, time_of(a.steps, s, d), b, d);
  T out = narrow<T>(0);
  if (at.active) {
    auto& carry = step.carry[unit.at];
    if (at.index == 0) carry = a.h_0 == nullptr ? 0 : widen(a.h_0[unit.at]);
    if (at.reset) carry = 0;
    const auto r = early_gate(a, step, at, b, u, d, 0), z = early_gate(a, step, at, b, u, d, 1);
    auto sum = widen(a.x[((at.row * a.D + d) * 3 + 2) * a.H + u]) + widen(step.sums_n[unit.at]);
    if (a.b_ih[d] != nullptr) sum += widen(a.b_ih[d][2 * a.H + u]) + widen(a.b_hh[d][2 * a.H + u]);
    const auto n = Functions<T>::tanh(sum);
    if (a.reserve != nullptr) {
      T* slot = saved_at(a.reserve, a.steps, 3, a.H, at.row, u, d);
      const int64_t next = padded_units(a.H);
      slot[0] = narrow<T>(r), slot[next] = narrow<T>(z), slot[2 * next] = narrow<T>(n);
    }
    carry = n + z * (carry - n);
    out = narrow<T>(carry);
  }
  leave(a, at, s, b, u, d, out, step.h);
}

// ---- backward -----------------------------------------------------------------------------------

// The gradient that step s + 1 left for the state between the two.
template <typename T>
__device__ __forceinline__ Accumulator<T> recurrent_part(const Backward<T>& a,
                                                         const BackwardStep<T>& step, int64_t s,
                                                         int b, int u, int d) {
  const Position from = position(a.steps, time_of(a.steps, s + 1, d), b, d);
  return from.active && !from.reset ? widen(step.recurrent[(d * a.steps.B + b) * a.P + u]) : 0;
}

// Gradient of h after step s, without what `carry` holds.
template <typename T>
__device__ __forceinline__ Accumulator<T> output_gradient(const Backward<T>& a,
                                                          const BackwardStep<T>& step,
                                                          const Position& at, int64_t s, int b,
                                                          int u, int d) {
  auto d_h = recurrent_part(a, step, s, b, u, d);
  if (a.d_y != nullptr) d_h += widen(a.d_y[at.row * a.D * a.P + d * a.P + u]);
  if (at.index == at.length - 1) d_h += final_gradient(a.d_h_n, a.steps, a.P, b, u, d);
  return d_h;
}

// Whether position s is the one before the first step, where the initial state's gradients go.
__device__ __forceinline__ bool before_first(const Position& at) {
  return at.length > 0 && at.index == -1;
}

template <typename T>
__global__ void project_backward_kernel(const Backward<T> a, const BackwardStep<T> step,
                                        int64_t s) {
  const Unit unit(a.D, a.steps.B, a.P);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b, u = unit.u, t = time_of(a.steps, s, d);
  const Position at = position(a.steps, t, b, d);
  T out = narrow<T>(0);
  if (at.active) {
    out = narrow<T>(output_gradient(a, step, at, s, b, u, d));
  } else if (before_first(at)) {
    a.d_h_0[unit.at] = narrow<T>(recurrent_part(a, step, s, b, u, d));
  }
  if (at.length == 0 && s < 0)
    a.d_h_0[unit.at] = narrow<T>(final_gradient(a.d_h_n, a.steps, a.P, b, u, d));
  step.d_projected[unit.at] = out;
  if (s >= 0 && (a.steps.offset == nullptr || t < at.length))
    step.d_h_rows[(d * a.steps.rows + row_of(a.steps, t, b)) * a.P + u] = out;
}

template <typename C, typename T>
__global__ void step_backward_kernel(const Backward<T> a, const BackwardStep<T> step, int64_t s) {
  using A = Accumulator<T>;
  constexpr int G = C::kGates;
  const Unit unit(a.D, a.steps.B, a.H);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b, u = unit.u, t = time_of(a.steps, s, d);
  const Position at = position(a.steps, t, b, d);
  const bool projected = step.d_inner != nullptr;
  A d_x[G] = {}, d_sum[G] = {};
  A& carry = step.carry[unit.at];
  if (at.active) {
    const StepRecord<C, T> record = load_record<C>(a, at, t, b, u, d);
    const A d_h =
        projected ? widen(step.d_inner[unit.at]) : output_gradient(a, step, at, s, b, u, d);
    if (at.index == at.length - 1)
      carry = C::kCarriesCell ? final_gradient(a.d_c_n, a.steps, a.H, b, u, d) : 0;
    backward_unit<C>(a, at, record, d_h, carry, d_x, d_sum);
  } else if (before_first(at)) {
    if (!projected)
      a.d_h_0[unit.at] =
          narrow<T>(recurrent_part(a, step, s, b, u, d) + (C::kCarriesCell ? A(0) : carry));
    if (C::kCarriesCell) a.d_c_0[unit.at] = narrow<T>(carry);
  }
  if (at.length == 0 && s < 0) {
    if (!projected) a.d_h_0[unit.at] = narrow<T>(final_gradient(a.d_h_n, a.steps, a.H, b, u, d));
    if (C::kCarriesCell)
      a.d_c_0[unit.at] = narrow<T>(final_gradient(a.d_c_n, a.steps, a.H, b, u, d));
  }
  if (s < 0) return;
  const bool exists = a.steps.offset == nullptr || t < at.length;
  for (int g = 0; g < G; ++g) {
    step.d_sums[((d * a.steps.B + b) * G + g) * a.H + u] = narrow<T>(d_sum[g]);
    if (!exists) continue;
    const int64_t to = ((row_of(a.steps, t, b) * a.D + d) * G + g) * a.H + u;
    a.d_h[to] = narrow<T>(d_sum[g]);
    if (a.d_x != nullptr) a.d_x[to] = narrow<T>(d_x[g]);
  }
}

// Gradients of n and z; that of r needs d_n W_hn first.
template <typename T>
__global__ void reset_before_backward_kernel(const Backward<T> a, const BackwardStep<T> step,
                                             int64_t s) {
  using A = Accumulator<T>;
  const Unit unit(a.D, a.steps.B, a.H);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b, u = unit.u, t = time_of(a.steps, s, d);
  const Position at = position(a.steps, t, b, d);
  A& carry = step.carry[unit.at];
  A d_n = 0, d_z = 0;
  if (at.active) {
    if (at.index == at.length - 1) carry = 0;
    const A d_h = output_gradient(a, step, at, s, b, u, d) + carry;
    const T* slot = saved_at(a.reserve, a.steps, 3, a.H, at.row, u, d);
    const A z = widen(slot[padded_units(a.H)]), n = widen(slot[2 * padded_units(a.H)]);
    const A before = state_before<GruCell<T>>(a, at, t, b, u, d);
    d_n = d_h * (1 - z) * (1 - n * n);
    d_z = d_h * (before - n) * z * (1 - z);
    carry = d_h * z;
  } else if (before_first(at)) {
    a.d_h_0[unit.at] = narrow<T>(recurrent_part(a, step, s, b, u, d) + carry);
  }
  if (at.length == 0 && s < 0)
    a.d_h_0[unit.at] = narrow<T>(final_gradient(a.d_h_n, a.steps, a.H, b, u, d));
  if (s < 0) return;
  step.d_n[unit.at] = narrow<T>(d_n);
  step.d_sums[((d * a.steps.B + b) * 2 + 1) * a.H + u] = narrow<T>(d_z);
}

template <typename T>
__global__ void reset_gate_backward_kernel(const Backward<T> a, const BackwardStep<T> step,
                                           int64_t s) {
  using A = Accumulator<T>;
  const Unit unit(a.D, a.steps.B, a.H);
  if (!unit.there) return;
  const int d = unit.d, b = unit.b, u = unit.u, t = time_of(a.steps, s, d);
  const Position at = position(a.steps, t, b, d);
  A d_r = 0;
  if (at.active) {
    const A r = widen(*saved_at(a.reserve, a.steps, 3, a.H, at.row, u, d));
    const A d_reset_h = widen(step.d_reset_h[unit.at]);
    d_r = d_reset_h * state_before<GruCell<T>>(a, at, t, b, u, d) * r * (1 - r);
    step.carry[unit.at] = at.reset ? 0 : step.carry[unit.at] + d_reset_h * r;
  }
  T* d_rz = step.d_sums + (d * a.steps.B + b) * 2 * a.H + u;
  d_rz[0] = narrow<T>(d_r);
  if (a.steps.offset != nullptr && t >= at.length) return;
  T* rows = a.d_h + (row_of(a.steps, t, b) * a.D + d) * 3 * a.H + u;
  rows[0] = narrow<T>(d_r);
  rows[a.H] = d_rz[a.H];
  rows[2 * a.H] = step.d_n[unit.at];
}

}  // namespace

// ---- launches -----------------------------------------------------------------------------------

template <typename T>
cudaError_t start_forward(const Forward<T>& a, const ForwardStep<T>& step, cudaStream_t stream) {
  return launch(start_kernel<T>, a.D * a.steps.B * a.P, stream, a, step);
}

template <typename T>
cudaError_t apply_reset_gate(const Forward<T>& a, const ForwardStep<T>& step, int64_t s,
                             cudaStream_t stream) {
  return launch(apply_reset_kernel<T>, a.D * a.steps.B * a.H, stream, a, step, s);
}

template <typename T>
cudaError_t step_forward(const Forward<T>& a, const ForwardStep<T>& step, int64_t s,
                         cudaStream_t stream) {
  const int64_t units = a.D * a.steps.B * a.H;
  if (a.cell == Cell::kGruResetBefore)
    return launch(reset_before_kernel<T>, units, stream, a, step, s);
  return with_cell<T>(a.cell, [&](auto cell) {
    return launch(step_kernel<decltype(cell), T>, units, stream, a, step, s);
  });
}

template <typename T>
cudaError_t project_forward(const Forward<T>& a, const ForwardStep<T>& step, int64_t s,
                            cudaStream_t stream) {
  return launch(project_kernel<T>, a.D * a.steps.B * a.P, stream, a, step, s);
}

template <typename T>
cudaError_t project_backward(const Backward<T>& a, const BackwardStep<T>& step, int64_t s,
                             cudaStream_t stream) {
  return launch(project_backward_kernel<T>, a.D * a.steps.B * a.P, stream, a, step, s);
}

template <typename T>
cudaError_t step_backward(const Backward<T>& a, const BackwardStep<T>& step, int64_t s,
                          cudaStream_t stream) {
  const int64_t units = a.D * a.steps.B * a.H;
  if (a.cell == Cell::kGruResetBefore)
    return launch(reset_before_backward_kernel<T>, units, stream, a, step, s);
  return with_cell<T>(a.cell, [&](auto cell) {
    return launch(step_backward_kernel<decltype(cell), T>, units, stream, a, step, s);
  });
}

template <typename T>
cudaError_t reset_gate_backward(const Backward<T>& a, const BackwardStep<T>& step, int64_t s,
                                cudaStream_t stream) {
  return launch(reset_gate_backward_kernel<T>, a.D * a.steps.B * a.H, stream, a, step, s);
}

#define INSTANTIATE(T)                                                                          \
  template cudaError_t start_forward(const Forward<T>&, const ForwardStep<T>&, cudaStream_t);   \
  template cudaError_t apply_reset_gate(const Forward<T>&, const ForwardStep<T>&, int64_t,      \
                                        cudaStream_t);                                          \
  template cudaError_t step_forward(const Forward<T>&, const ForwardStep<T>&, int64_t,          \
                                    cudaStream_t);                                              \
  template cudaError_t project_forward(const Forward<T>&, const ForwardStep<T>&, int64_t,       \
                                       cudaStream_t);                                           \
  template cudaError_t project_backward(const Backward<T>&, const BackwardStep<T>&, int64_t,    \
                                        cudaStream_t);                                          \
  template cudaError_t step_backward(const Backward<T>&, const BackwardStep<T>&, int64_t,       \
                                     cudaStream_t);                                             \
  template cudaError_t reset_gate_backward(const Backward<T>&, const BackwardStep<T>&, int64_t, \
                                           cudaStream_t)
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace seq2seq_ext::cuda
