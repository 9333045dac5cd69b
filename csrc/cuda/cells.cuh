// The cells' arithmetic: one step of one hidden unit, forward and backward. Both the persistent
// kernels and the general path call these, and nothing else in csrc/cuda knows a gate.
//
// A is float, or double for double. The equations are those of seq2seq_ext/reference.py; what is
// saved for backward lies in the slots that csrc/cells.h lists.
#pragma once

#include "../cells.h"
#include "device.cuh"

namespace seq2seq_ext::cuda {

// Half precision rounds its results to 2^-9 or 2^-11, far above the error of the fast exponential;
// float and double take the exact functions.
template <typename T>
struct Functions {
  using A = Accumulator<T>;

  static __device__ __forceinline__ A sigmoid(A x) {
    if constexpr (sizeof(T) == 2) {
      return __fdividef(1.f, 1.f + __expf(-x));
    } else if constexpr (sizeof(T) == 4) {
      return 1.f / (1.f + expf(-x));
    } else {
      return 1. / (1. + exp(-x));
    }
  }

  static __device__ __forceinline__ A tanh(A x) {
    if constexpr (sizeof(T) == 2) {
      // __fdividef gives 0 for divisors beyond 2^126, which is the limit anyway.
      return 1.f - __fdividef(2.f, 1.f + __expf(2.f * x));
    } else if constexpr (sizeof(T) == 4) {
      return tanhf(x);
    } else {
      return ::tanh(x);
    }
  }
};

// Each cell has
//   kGates          rows of w_ih and w_hh per unit
//   kSlots          numbers saved per unit and step
//   kCarriesCell    whether the state that a thread carries from step to step is c, not h
//   forward()       h after the step from x (W_ih x + b_ih) and h (W_hh h + b_hh) of each gate
//   backward()      gradients of the two sums, and of the state before the step as far as it does
//                   not come through W_hh; `d_carry` is that of the state after the step
// with `carry` the state: c for an LSTM, h for a GRU, unused for an RNN.

template <typename T>
struct LstmCell {
  using A = Accumulator<T>;
  using F = Functions<T>;
  static constexpr Cell kCell = Cell::kLstm;
  static constexpr int kGates = 4, kSlots = 5;
  static constexpr bool kCarriesCell = true;
  static constexpr bool kSplitSums = false;  // whether d_x and d_h below differ

  static __device__ __forceinline__ A forward(const A (&x)[4], const A (&h)[4], A& carry,
                                              A (&saved)[5], bool) {
    const A i = F::sigmoid(x[0] + h[0]), f = F::sigmoid(x[1] + h[1]);
    const A g = F::tanh(x[2] + h[2]), o = F::sigmoid(x[3] + h[3]);
    const A c = f * carry + i * g;
    carry = c;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
    return o * F::tanh(c);
  }

  // before: c before the step.
  static __device__ __forceinline__ void backward(A d_h, const A (&saved)[5], A before, A, bool,
                                                  A& d_carry, A (&d_x)[4], A (&d_sum)[4]) {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const A tanh_c = F::tanh(saved[4]);
    const A d_c = d_carry + d_h * o * (1 - tanh_c * tanh_c);
    d_sum[0] = d_c * g * i * (1 - i);
    d_sum[1] = d_c * before * f * (1 - f);
    d_sum[2] = d_c * i * (1 - g * g);
    d_sum[3] = d_h * tanh_c * o * (1 - o);
    d_carry = d_c * f;
    for (int k = 0; k < 4; ++k) d_x[k] = d_sum[k];
  }
};

template <typename T>
struct GruCell {
  using A = Accumulator<T>;
  using F = Functions<T>;
  static constexpr Cell kCell = Cell::kGru;
  static constexpr int kGates = 3, kSlots = 4;
  static constexpr bool kCarriesCell = false;
  static constexpr bool kSplitSums = true;

  static __device__ __forceinline__ A forward(const A (&x)[3], const A (&h)[3], A& carry,
                                              A (&saved)[4], bool) {
    const A r = F::sigmoid(x[0] + h[0]), z = F::sigmoid(x[1] + h[1]);
    const A n = F::tanh(x[2] + r * h[2]);
    carry = n + z * (carry - n);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = h[2];
    return carry;
  }

  // before: h before the step; d_carry: of h after it, beside d_h.
  static __device__ __forceinline__ void backward(A d_h, const A (&saved)[4], A before, A, bool,
                                                  A& d_carry, A (&d_x)[3], A (&d_sum)[3]) {
    const A r = saved[0], z = saved[1], n = saved[2];
    const A d = d_h + d_carry;
    const A d_n = d * (1 - z) * (1 - n * n);
    d_x[0] = d_sum[0] = d_n * saved[3] * r * (1 - r);
    d_x[1] = d_sum[1] = d * (before - n) * z * (1 - z);
    d_x[2] = d_n;
    d_sum[2] = d_n * r;
    d_carry = d * z;
  }
};

template <typename T>
struct RnnCell {
  using A = Accumulator<T>;
  static constexpr Cell kCell = Cell::kRnnTanh;
  static constexpr int kGates = 1, kSlots = 0;
  static constexpr bool kCarriesCell = false;
  static constexpr bool kSplitSums = false;

  static __device__ __forceinline__ A forward(const A (&x)[1], const A (&h)[1], A&, A (&)[1],
                                              bool relu) {
    const A sum = x[0] + h[0];
    return relu ? (sum < 0 ? A(0) : sum) : Functions<T>::tanh(sum);  // a NaN stays one
  }

  // after: h after the step.
  static __device__ __forceinline__ void backward(A d_h, const A (&)[1], A, A after, bool relu, A&,
                                                  A (&d_x)[1], A (&d_sum)[1]) {
    d_x[0] = d_sum[0] = d_h * (relu ? (after > 0 ? A(1) : A(0)) : 1 - after * after);
  }
};

// Numbers saved per step, with room for an array even where there are none.
template <typename C>
constexpr int kSavedRoom = C::kSlots > 0 ? C::kSlots : 1;

// body(cell) with the cell's type: the one place that knows which cells run in one product a step.
template <typename T, typename Body>
cudaError_t with_cell(Cell cell, const Body& body) {
  switch (cell) {
    case Cell::kLstm:
      return body(LstmCell<T>{});
    case Cell::kGru:
      return body(GruCell<T>{});
    case Cell::kRnnTanh:
    case Cell::kRnnRelu:
      return body(RnnCell<T>{});
    case Cell::kGruResetBefore:
    case Cell::kCoupledLstm:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace seq2seq_ext::cuda
