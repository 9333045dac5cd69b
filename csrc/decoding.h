// A step of a decoder with what stands before and behind its cells (decoder.h), from tokens to the
// scores of the next: what callers hand to the kernels. Plain sizes and pointers, no torch.
//
// Before the cells, x = W_x e(token), and what does not change from step to step, of each source.
// Behind them, features: the attentional vector, where there is one; or a maxout layer, the larger
// of each two of W_s z + W_t e(token) + W_c context (Goodfellow et al. 2013, arXiv 1302.4389); or
// z. Scores are W_v of the features, or W_v W_r where `rank` bounds the rank of that map.
//
// Sizes, beside those of decoder.h: V tokens, E features of their embeddings, X of what a source
// adds to the input of every step, U units of the maxout layer, R the rank; M sources.
#pragma once

#include <cstdint>

#include "decoder.h"

namespace seq2seq_ext {

// The weights of a decoder as torch keeps them. Absent ones are null.
template <typename T>
struct DecoderWeights {
  Cell cell;
  int64_t L, H, V, E, X, F, A, C, O, U, R;
  const T* embedding;    // (V, E)
  const T* const* w_ih;  // (L) of (G*H, E + X + F), from the second on (G*H, H)
  const T* const* w_in;  // the same, the first from the columns of the feed on; null where F is 0
  const T* const* w_hh;  // (L) of (G*H, H)
  const T* const* b_ih;  // (L) of (G*H) or null, as the next
  const T* const* b_hh;
  const T* w_query;     // (A, H)
  const T* v;           // (A)
  const T* gain;        // (1): v is scaled to this length
  const T* w_coverage;  // (A)
  const T* w_out;       // (O, C + H)
  const T* b_out;       // (O)
  const T* w_state;     // (2U, H), as the next three of the maxout layer
  const T* b_state;     // (2U)
  const T* w_token;     // (2U, E)
  const T* w_context;   // (2U, C)
  const T* w_rank;      // (R, features)
  const T* w_vocab;     // (V, R or features)
  const T* b_vocab;     // (V)
};

// What steps read beside the state.
template <typename T>
struct Decoding {
  DecoderWeights<T> w;  // of which the embedding and sizes are read
  int64_t M, S, heads, residual;
  bool query_first;
  double scale;           // as in Decoder
  const T* gates;         // (rows, G*H) what is added to x, or null; rows are sources in a search
  const T* pieces;        // (rows, 2U) what is added to the maxout layer, or null
  const T* keys;          // (M, S, A), or null, as the next two: no attention
  const T* values;        // (M, S, C)
  const int64_t* source;  // (M) lengths
};

// One step of N rows.
template <typename T>
struct DecodingStep : Decoding<T> {
  int64_t N;
  const int64_t* tokens;  // (N)
  const int64_t* memory;  // (N) which of the M sources a row attends to, or null: its own
  const T* h;             // (L, N, H)
  const T* c;             // (L, N, H) LSTM only
  const T* feed;          // (N, F) or null: zero
  const T* coverage;      // (N, S) or null: zero
  T* logits;              // (N, V)
  T* h_n;                 // (L, N, H)
  T* c_n;                 // (L, N, H) LSTM only
  T* feed_n;              // (N, F) where F > 0
  T* coverage_n;          // (N, S) where there is coverage
  T* alignments;          // (N, S) the mean of all heads, where there is attention
};

}  // namespace seq2seq_ext
