// What the glue hands to the kernels of decoder.cu beside the call (csrc/decoder.h). Of the call
// they read no matrix, and neither lengths nor memory: those lie on the device here.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../decoder.h"
#include "kernels.h"

namespace seq2seq_ext::cuda {

// Memory that lasts for a call. Null where there is no such thing, or where the call keeps it.
struct DecoderSequences {
  const int32_t* length;  // (B) or null: all T
  const int32_t* source;  // (M) lengths, or null: all S
  const int32_t* memory;  // (B) which of the M sequences a row attends to, or null: its own
};

template <typename T>
struct DecoderState : DecoderSequences {
  Accumulator<T>* h;         // (L, B, H)
  Accumulator<T>* c;         // (L, B, H)
  Accumulator<T>* coverage;  // (B, S)
  Accumulator<T>* energy;    // (B, heads, S)
  T* feed;                   // (B, F)
  T* top;                    // (B, H) z of the last layer
  T* h_in;                   // (L, B, H) what W_hh multiplies
  T* inner;                  // (L, B, H) reset before only: what W_hn does
  T* below;                  // (B, H) what W_in does, from the second layer on
  T* gates;                  // (B, G*H) that product, then all that the gates get beside W_hh's
  T* sums;                   // (B, G*H) W_hh h; with reset before (B, 2H)
  T* candidate;              // (B, H) reset before only: W_hn (r h)
  T* query;                  // (B, A) W_q z
  T* joined;                 // (B, C + H) [context, z]
  T* out;                    // (B, O) W_c of it
};

// The gradients of all that.
template <typename T>
struct DecoderStateGradient : DecoderSequences {
  Accumulator<T>* h;         // (L, B, H)
  Accumulator<T>* c;         // (L, B, H)
  Accumulator<T>* coverage;  // (B, S)
  Accumulator<T>* energy;    // (N, heads, S)
  Accumulator<T>* feed;      // (B, F)
  Accumulator<T>* z;         // (B, H) of the layer at hand
  Accumulator<T>* work;      // (B, H)
  T* h_in;                   // (B, H) of what W_hh multiplied
  T* reset_h;                // (B, H) reset before only: of what W_hn did
  T* below;                  // (B, F), of layers from the second on (B, H), of what W_in did
  T* query;                  // (B, H) of what W_q did
  T* joined;                 // (B, C + H)
};

// Forward: begin; then for each step t, with query_first `attend` first, else it comes behind the
// layers; for each layer l the products of W_in and W_hh, with reset before `reset` and the product
// of W_hn, then `step`; where there is an attentional vector, its product and `combine`; at last
// `end`. `attend` wants the product of W_q before it, where there is one.
template <typename T>
cudaError_t decoder_begin(const DecoderForward<T>&, const DecoderState<T>&, cudaStream_t);
template <typename T>
cudaError_t decoder_attend(const DecoderForward<T>&, const DecoderState<T>&, int64_t t,
                           cudaStream_t);
template <typename T>
cudaError_t decoder_reset(const DecoderForward<T>&, const DecoderState<T>&, int64_t t, int64_t l,
                          cudaStream_t);
template <typename T>
cudaError_t decoder_step(const DecoderForward<T>&, const DecoderState<T>&, int64_t t, int64_t l,
                         cudaStream_t);
template <typename T>
cudaError_t decoder_combine(const DecoderForward<T>&, const DecoderState<T>&, int64_t t,
                            cudaStream_t);
template <typename T>
cudaError_t decoder_end(const DecoderForward<T>&, const DecoderState<T>&, cudaStream_t);

// Backward: begin; then for each step from the last on, where there is an attentional vector
// `combine` and its product; `attend` and the product of W_q, which with query_first come behind
// the layers; for each layer from the last on `step`, with reset before the product of W_hn and
// `reset`, the products of W_hh and W_in; at last `end`, and for additive energies `keys`.
template <typename T>
cudaError_t decoder_begin(const DecoderBackward<T>&, const DecoderStateGradient<T>&, cudaStream_t);
template <typename T>
cudaError_t decoder_combine(const DecoderBackward<T>&, const DecoderStateGradient<T>&, int64_t t,
                            cudaStream_t);
template <typename T>
cudaError_t decoder_attend(const DecoderBackward<T>&, const DecoderStateGradient<T>&, int64_t t,
                           cudaStream_t);
template <typename T>
cudaError_t decoder_step(const DecoderBackward<T>&, const DecoderStateGradient<T>&, int64_t t,
                         int64_t l, cudaStream_t);
template <typename T>
cudaError_t decoder_reset(const DecoderBackward<T>&, const DecoderStateGradient<T>&, int64_t t,
                          int64_t l, cudaStream_t);
template <typename T>
cudaError_t decoder_end(const DecoderBackward<T>&, const DecoderStateGradient<T>&, cudaStream_t);
template <typename T>
cudaError_t decoder_keys(const DecoderBackward<T>&, const DecoderStateGradient<T>&, cudaStream_t);

}  // namespace seq2seq_ext::cuda
