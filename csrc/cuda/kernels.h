// What the glue hands to the CUDA kernels: plain sizes and device pointers, no torch.
//
// Sizes: T time steps, B sequences, H hidden units, P output features of a cell (H, or proj_size),
// D directions, G gates. A call runs one layer in all its directions.
//
// Rows. Everything that runs over time is a matrix of one row for each step of a sequence:
// row(t, b) = t * B + b in a dense batch, offset[t] + b in a packed one. Lengths are masks: a step
// that is not active leaves the state alone, its output is 0, and so are its gradients.
//
// Products over all steps at once (input projection, weight gradients) are the glue's, by torch's
// own matrix products; what is here is what runs from step to step.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "../cells.h"
#include "plan.h"

namespace seq2seq_ext::cuda {

// What sums of stored numbers are kept in.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Steps {
  int64_t T, B;
  int64_t rows;           // T * B, or those of a packed batch
  const int32_t* length;  // (B) or null: all T
  const int64_t* offset;  // (T) packed only: row of step (t, 0), sequences sorted by falling length
  const uint8_t* reset;   // (rows) not 0: the state entering this step is zero; or null
};

template <typename T>
struct Layer {
  Cell cell;
  Steps steps;
  int64_t H, P, D;
  const T* w_hh[2];  // (G*H, P)
  const T* b_ih[2];  // (G*H) or null
  const T* b_hh[2];  // (G*H) or null
  const T* h_0;      // (D, B, P) or null: zero
  const T* c_0;      // (D, B, H) or null: zero
};

// Memory in which blocks hand each other rows while they run: `features` numbers to a row, at
// base + row * stride + d * direction. Filled with ones beforehand (device.cuh), every row aligned
// to 16 bytes.
template <typename T>
struct Exchange {
  T* base;
  int64_t stride, direction;
};

template <typename T>
struct Forward : Layer<T> {
  const T* x;        // (rows, D, G*H) W_ih x, without biases
  T* y;              // (rows, D*P)
  Exchange<T> h;     // H padded to 16 bytes; y itself where its rows are aligned so
  const T* h_start;  // (D, B, padded H) h_0 as pad_states leaves it, or null: zero
  T* h_n;            // (D, B, P)
  T* c_n;            // (D, B, H), LSTM only
  T* reserve;        // (D, rows, slots, padded H) or null
};

template <typename T>
struct Backward : Layer<T> {
  const T* y;         // (rows, D*P)
  const T* reserve;   // (D, rows, slots, padded H)
  const T* d_y;       // (rows, D*P) or null: zero
  const T* d_h_n;     // (D, B, P) or null: zero
  const T* d_c_n;     // (D, B, H) or null: zero
  Exchange<T> d_sum;  // G rows of H padded to 16 bytes each: gradient of W_hh h + b_hh
  T* d_h;             // (rows, D, G*H) the same without padding; null: d_sum has none
  T* d_x;             // (rows, D, G*H) gradient of W_ih x + b_ih; null: the same numbers as d_h
  T* d_h_0;           // (D, B, P)
  T* d_c_0;           // (D, B, H), LSTM only
};

// ---- persistent kernels: one launch runs all steps ---------------------------------------------

// Number of numbers that 16 bytes hold, to which rows of an exchange are padded.
template <typename T>
constexpr int64_t padded_to_pieces(int64_t features) {
  constexpr int64_t kPer = 16 / sizeof(T);
  return (features + kPer - 1) / kPer * kPer;
}

// P has to be H, and the cell another than kGruResetBefore. The exchange is full of ones. `tensor`
// asks for the tensor cores, with floats as TF32; else plain multiply-adds in T.
template <typename T>
cudaError_t persistent_forward(const Forward<T>&, const Layout&, bool tensor, cudaStream_t);
template <typename T>
cudaError_t persistent_backward(const Backward<T>&, const Layout&, bool tensor, cudaStream_t);

// out (rows, padded features): the states with zeros behind each, and with the one NaN of bits_of,
// so that whoever reads them as an exchange does not wait.
template <typename T>
cudaError_t pad_states(const T* states, int64_t rows, int64_t features, T* out, cudaStream_t);

// ---- general path: the glue multiplies, these do the rest of a step ----------------------------
//
// Step s counts in each direction's order of reading. All matrices below are (D, B, features),
// contiguous, and hold what belongs to the step at hand, so that one batched product serves all
// directions.

template <typename T>
struct ForwardStep {
  T* h;                   // (D, B, P) the state entering the step
  const T* sums;          // (D, B, G*H) W_hh h; of kGruResetBefore only r and z: (D, B, 2H)
  const T* sums_n;        // (D, B, H) kGruResetBefore only: W_hn (r h)
  Accumulator<T>* carry;  // (D, B, H) c of an LSTM, else h
  T* inner;               // (D, B, H) projected LSTM: o tanh(c); kGruResetBefore: r h
  const T* projected;     // (D, B, P) inner W_hr^T
};

// The state entering step 0.
template <typename T>
cudaError_t start_forward(const Forward<T>&, const ForwardStep<T>&, cudaStream_t);
// kGruResetBefore: inner, from h and sums.
template <typename T>
cudaError_t apply_reset_gate(const Forward<T>&, const ForwardStep<T>&, int64_t s, cudaStream_t);
// The step, and the state entering the next one. A projected LSTM gets as far as inner.
template <typename T>
cudaError_t step_forward(const Forward<T>&, const ForwardStep<T>&, int64_t s, cudaStream_t);
// The rest of it.
template <typename T>
cudaError_t project_forward(const Forward<T>&, const ForwardStep<T>&, int64_t s, cudaStream_t);

template <typename T>
struct BackwardStep {
  const T* recurrent;     // (D, B, P) d_sums of step s + 1 times W_hh
  T* d_sums;              // (D, B, G*H); of kGruResetBefore r and z: (D, B, 2H)
  T* d_n;                 // (D, B, H) kGruResetBefore only: gradient of n's sum
  const T* d_reset_h;     // (D, B, H) kGruResetBefore only: d_n times W_hn
  T* d_projected;         // (D, B, P) projected LSTM: gradient of h
  const T* d_inner;       // (D, B, H) projected LSTM: that times W_hr
  Accumulator<T>* carry;  // (D, B, H) gradient of c, or of h as far as not through W_hh
  T* d_h_rows;            // (D, rows, P) projected LSTM: d_projected of every step
};

// Projected LSTM: d_projected of step s. Then, as for every cell, the gradients of step s, or for
// s = -1 those of the initial state. kGruResetBefore goes on with the gradient of r.
template <typename T>
cudaError_t project_backward(const Backward<T>&, const BackwardStep<T>&, int64_t s, cudaStream_t);
template <typename T>
cudaError_t step_backward(const Backward<T>&, const BackwardStep<T>&, int64_t s, cudaStream_t);
template <typename T>
cudaError_t reset_gate_backward(const Backward<T>&, const BackwardStep<T>&, int64_t s,
                                cudaStream_t);

// ---- rows: once over all steps ------------------------------------------------------------------

// Up to kUploadCount lengths at a time travel as arguments of a kernel: no host memory has to
// outlive the call, and stream capture records them.
cudaError_t upload_lengths(const int64_t* host, int64_t B, int32_t* device, cudaStream_t);
// Lengths that lie on the device already, kept within 0 to T.
cudaError_t take_lengths(const int64_t* given, int64_t B, int64_t T, int32_t* device, cudaStream_t);
// offset[t] = sum over b of min(length[b], t).
cudaError_t packed_offsets(const int32_t* length, int64_t B, int64_t T, int64_t* offset,
                           cudaStream_t);
// out (D, rows, P): the state that entered each step, as W_hh read it; 0 for steps not active. For
// kGruResetBefore also inner (D, rows, H): r times it; for a projected LSTM inner is o tanh(c).
template <typename T>
cudaError_t entering_states(const Backward<T>&, T* out, T* inner, cudaStream_t);
// out[c] and, if given, again[c] = the sum of x[r * stride + c] over all rows, each column in the
// order of a fixed tree.
template <typename T>
cudaError_t sum_rows(const T* x, int64_t rows, int64_t columns, int64_t stride, T* out, T* again,
                     cudaStream_t);
// out = x, (rows, features), times mask (or null), with zeros in steps that are not active.
template <typename T>
cudaError_t clean_rows(const Steps&, const T* x, const T* mask, int64_t features, T* out,
                       cudaStream_t);

}  // namespace seq2seq_ext::cuda
