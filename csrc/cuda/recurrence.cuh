// What the glue hands to the kernels of recurrence.cu beside the call (csrc/recurrence.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../recurrence.h"
#include "kernels.h"

namespace seq2seq_ext::cuda {

// Memory that lasts for a call. Rows of the step at hand are (B, features) where the call keeps
// nothing; else they lie in what is kept.
template <typename T>
struct RecurrenceMemory {
  const int32_t* length;  // (B) or null: all T
  Accumulator<T>* h;      // (B, P) state, or its gradient
  Accumulator<T>* c;      // (B, H) the same, has_cell() only
  Accumulator<T>* work;   // (B, H)
  T* sums;                // (B, G*H) W_hh h; with reset before (B, 2H)
  T* candidate;           // (B, H) reset before only: W_hn (r h)
  T* out;                 // (B, P) W_hr inner
  T* h_in;                // (B, P), or null
  T* inner;               // (B, H), or null
  T* d_h_in;              // (B, P)
  T* d_inner;             // (B, H) with a projection only
  T* d_reset_h;           // (B, H) reset before only
};

// Steps s count in the order of reading. Forward: begin; then in each step the product with W_hh,
// with reset before `reset` and the product with W_hn, `step`, with a projection the product with
// W_hr and `leave`; at last `end`.
template <typename T>
cudaError_t recurrence_begin(const RecurrenceForward<T>&, const RecurrenceMemory<T>&, cudaStream_t);
template <typename T>
cudaError_t recurrence_reset(const RecurrenceForward<T>&, const RecurrenceMemory<T>&, int64_t s,
                             cudaStream_t);
template <typename T>
cudaError_t recurrence_step(const RecurrenceForward<T>&, const RecurrenceMemory<T>&, int64_t s,
                            cudaStream_t);
template <typename T>
cudaError_t recurrence_leave(const RecurrenceForward<T>&, const RecurrenceMemory<T>&, int64_t s,
                             cudaStream_t);
template <typename T>
cudaError_t recurrence_end(const RecurrenceForward<T>&, const RecurrenceMemory<T>&, cudaStream_t);
// Of a tangent, whose cells have neither `reset` nor `leave`; the rest is forward's.
template <typename T>
cudaError_t recurrence_step(const RecurrenceTangent<T>&, const RecurrenceMemory<T>&, int64_t s,
                            cudaStream_t);

// Backward: begin; then in each step from the last on, with a projection `leave` and the product
// with W_hr; `step`; with reset before the product with W_hn and `reset`; the product with W_hh; at
// last `end`.
template <typename T>
cudaError_t recurrence_begin(const RecurrenceBackward<T>&, const RecurrenceMemory<T>&,
                             cudaStream_t);
template <typename T>
cudaError_t recurrence_leave(const RecurrenceBackward<T>&, const RecurrenceMemory<T>&, int64_t s,
                             cudaStream_t);
template <typename T>
cudaError_t recurrence_step(const RecurrenceBackward<T>&, const RecurrenceMemory<T>&, int64_t s,
                            cudaStream_t);
template <typename T>
cudaError_t recurrence_reset(const RecurrenceBackward<T>&, const RecurrenceMemory<T>&, int64_t s,
                             cudaStream_t);
template <typename T>
cudaError_t recurrence_end(const RecurrenceBackward<T>&, const RecurrenceMemory<T>&, cudaStream_t);

}  // namespace seq2seq_ext::cuda
