// One step of one hidden unit of one sequence, with all that it reads and writes but the product
// with W_hh: masks, biases, states, the reserve, outputs. The persistent kernels and the general
// path differ in where the product comes from and where h goes.
#pragma once

#include "cells.cuh"
#include "kernels.h"

namespace seq2seq_ext::cuda {

// Where step `t` of sequence `b` stands in direction `d`.
struct Position {
  int64_t row;
  int index;    // in the order of reading; below 0 before the first step
  int length;   // of the sequence
  bool active;  // it is one of the sequence's steps
  bool reset;   // the state that enters it is zero
};

__device__ __forceinline__ int length_of(const Steps& steps, int b) {
  return steps.length == nullptr ? static_cast<int>(steps.T) : steps.length[b];
}

__device__ __forceinline__ int64_t row_of(const Steps& steps, int t, int b) {
  return (steps.offset == nullptr ? t * steps.B : steps.offset[t]) + b;
}

__device__ __forceinline__ Position position(const Steps& steps, int t, int b, int d) {
  Position at;
  at.length = length_of(steps, b);
  at.index = d == 0 ? t : at.length - 1 - t;
  at.active = at.index >= 0 && at.index < at.length;
  at.row =
      at.active || (steps.offset == nullptr && t >= 0 && t < steps.T) ? row_of(steps, t, b) : 0;
  at.reset = at.active && steps.reset != nullptr && steps.reset[at.row] != 0;
  return at;
}

// What of a unit stays the same over all steps.
template <typename C, typename T>
struct Biases {
  Accumulator<T> x[C::kGates], h[C::kGates];
};

template <typename C, typename T>
__device__ __forceinline__ Biases<C, T> biases_of(const Layer<T>& a, int u, int d) {
  Biases<C, T> bias;
  for (int g = 0; g < C::kGates; ++g) {
    bias.x[g] = a.b_ih[d] == nullptr ? 0 : widen(a.b_ih[d][g * a.H + u]);
    bias.h[g] = a.b_hh[d] == nullptr ? 0 : widen(a.b_hh[d][g * a.H + u]);
  }
  return bias;
}

// The first of a unit's numbers saved at a row; the others lie padded_units(H) apart.
template <typename T>
__device__ __forceinline__ T* saved_at(T* reserve, const Steps& steps, int64_t slots, int64_t H,
                                       int64_t row, int u, int d) {
  return reserve + (d * steps.rows + row) * slots * padded_units(H) + u;
}

// The state before the first step: of the unit itself.
template <typename C, typename T>
__device__ __forceinline__ Accumulator<T> initial_carry(const Layer<T>& a, int b, int u, int d) {
  const T* state = C::kCarriesCell ? a.c_0 : a.h_0;
  const int64_t features = C::kCarriesCell ? a.H : a.P;
  return state == nullptr ? 0 : widen(state[(d * a.steps.B + b) * features + u]);
}

// W_ih x + b_ih of the step's gates.
template <typename C, typename T>
__device__ __forceinline__ void load_inputs(const Forward<T>& a, const Biases<C, T>& bias,
                                            const Position& at, int u, int d,
                                            Accumulator<T> (&x)[C::kGates]) {
  const T* base = a.x + (at.row * a.D + d) * C::kGates * a.H + u;
  for (int g = 0; g < C::kGates; ++g) x[g] = widen(base[g * a.H]) + bias.x[g];
}

// The step: takes the sums W_hh h, returns h. Saves what backward needs, and c_n. The position has
// to be active.
template <typename C, typename T>
__device__ __forceinline__ Accumulator<T> forward_unit(const Forward<T>& a,
                                                       const Biases<C, T>& bias, const Position& at,
                                                       int b, int u, int d,
                                                       const Accumulator<T> (&x)[C::kGates],
                                                       Accumulator<T> (&sums)[C::kGates],
                                                       Accumulator<T>& carry) {
  if (at.index == 0) carry = initial_carry<C>(a, b, u, d);
  if (at.reset) carry = 0;
  for (int g = 0; g < C::kGates; ++g) sums[g] += bias.h[g];
  Accumulator<T> saved[kSavedRoom<C>];
  const auto h = C::forward(x, sums, carry, saved, a.cell == Cell::kRnnRelu);
  if (C::kSlots > 0 && a.reserve != nullptr) {
    T* slot = saved_at(a.reserve, a.steps, C::kSlots, a.H, at.row, u, d);
    for (int k = 0; k < C::kSlots; ++k) slot[k * padded_units(a.H)] = narrow<T>(saved[k]);
  }
  if (C::kCarriesCell && at.index == at.length - 1)
    a.c_n[(d * a.steps.B + b) * a.H + u] = narrow<T>(carry);
  return h;
}

// The state before a step, of the unit itself: c of an LSTM, else h.
template <typename C, typename T>
__device__ __forceinline__ Accumulator<T> state_before(const Backward<T>& a, const Position& at,
                                                       int t, int b, int u, int d) {
  if (at.reset) return 0;
  if (at.index == 0) return initial_carry<C>(a, b, u, d);
  const int64_t row = row_of(a.steps, d == 0 ? t - 1 : t + 1, b);
  if constexpr (C::kCarriesCell) {
    return widen(saved_at(a.reserve, a.steps, C::kSlots, a.H, row, u, d)[4 * padded_units(a.H)]);
  } else {
    return widen(a.y[row * a.D * a.P + d * a.P + u]);
  }
}

// The gradient of h after the last step, or of c.
template <typename T>
__device__ __forceinline__ Accumulator<T> final_gradient(const T* d_state, const Steps& steps,
                                                         int64_t features, int b, int u, int d) {
  return d_state == nullptr ? 0 : widen(d_state[(d * steps.B + b) * features + u]);
}

// What backward reads of a step before it knows the gradient that comes from the next one.
template <typename C, typename T>
struct StepRecord {
  Accumulator<T> saved[kSavedRoom<C>];
  Accumulator<T> before;  // the unit's own state before the step
  Accumulator<T> after;   // h after it, where nothing is saved
  Accumulator<T> d_y;
};

template <typename C, typename T>
__device__ __forceinline__ StepRecord<C, T> load_record(const Backward<T>& a, const Position& at,
                                                        int t, int b, int u, int d) {
  StepRecord<C, T> record{};
  const int64_t output = at.row * a.D * a.P + d * a.P + u;
  if constexpr (C::kSlots > 0) {
    const T* slot = saved_at(a.reserve, a.steps, C::kSlots, a.H, at.row, u, d);
    for (int k = 0; k < C::kSlots; ++k) record.saved[k] = widen(slot[k * padded_units(a.H)]);
    record.before = state_before<C>(a, at, t, b, u, d);
  } else {
    record.after = widen(a.y[output]);
  }
  // With a projection d_y is not of this unit: the glue multiplies it first.
  if (a.d_y != nullptr && a.P == a.H) record.d_y = widen(a.d_y[output]);
  return record;
}

// The step's gradients from d_h, the gradient of h after the step without what `carry` holds of it.
// The position has to be active; the carry is that of the state after the step, and becomes that of
// the state before it, which a reset cuts off.
template <typename C, typename T>
__device__ __forceinline__ void backward_unit(const Backward<T>& a, const Position& at,
                                              const StepRecord<C, T>& record, Accumulator<T> d_h,
                                              Accumulator<T>& carry,
                                              Accumulator<T> (&d_x)[C::kGates],
                                              Accumulator<T> (&d_sum)[C::kGates]) {
  C::backward(d_h, record.saved, record.before, record.after, a.cell == Cell::kRnnRelu, carry, d_x,
              d_sum);
  if (at.reset) carry = 0;
}

}  // namespace seq2seq_ext::cuda
