// Greedy and beam search over a decoder: what callers hand to the kernels. Plain sizes and pointers,
// no torch. The decoder is that of decoder.h with what stands before and behind its cells.
//
// Before them, x = W_x e(token), and what does not change from step to step, of each source. Behind
// them, features: the attentional vector, where there is one; or a maxout layer, the larger of each
// two of W_s z + W_t e(token) + W_c context (Goodfellow et al. 2013, arXiv 1302.4389); or z. Scores
// are W_v of the features, or W_v W_r where `rank` bounds the rank of that map.
//
// Sizes, beside those of decoder.h: V tokens, E features of their embeddings, X of what a source adds
// to the input of every step, U units of the maxout layer, R the rank; M sources, k beams of each.
#pragma once

#include <cstdint>

#include "decoder.h"

namespace seq2seq_ext {

// The weights of a decoder as torch keeps them. Absent ones are null.
template <typename T>
struct DecoderWeights {
  Cell cell;
  int64_t L, H, V, E, X, F, A, C, O, U, R;
  const T* embedding;     // (V, E)
  const T* const* w_ih;   // (L) of (G*H, E + X + F), from the second on (G*H, H)
  const T* const* w_in;   // the same, the first from the columns of the feed on; null where F is 0
  const T* const* w_hh;   // (L) of (G*H, H)
  const T* const* b_ih;   // (L) of (G*H) or null, as the next
  const T* const* b_hh;
  const T* w_query;       // (A, H)
  const T* v;             // (A)
  const T* gain;          // (1): v is scaled to this length
  const T* w_coverage;    // (A)
  const T* w_out;         // (O, C + H)
  const T* b_out;         // (O)
  const T* w_state;       // (2U, H), as the next three of the maxout layer
  const T* b_state;       // (2U)
  const T* w_token;       // (2U, E)
  const T* w_context;     // (2U, C)
  const T* w_rank;        // (R, features)
  const T* w_vocab;       // (V, R or features)
  const T* b_vocab;       // (V)
};

// When a source that has as many finished hypotheses as beams is done.
enum class EarlyStopping {
  kAtOnce,
  kNow,   // when none of its beams is better if it ended now
  kNever  // when none can become better
};

struct SearchOptions {
  int64_t beams, returned, max_tokens, min_tokens;  // of a source; of a hypothesis
  int64_t pad, bos, eos;
  double length_penalty;
  bool wu;  // divides by ((5 + n) / 6)^length_penalty, and not by n^length_penalty
  EarlyStopping early_stopping;
  bool scores, alignments;  // what is wanted beside the tokens
};

template <typename T>
struct Search {
  DecoderWeights<T> w;   // of which the embedding and sizes are read
  int64_t M, S, heads, residual;
  bool query_first;
  double scale;          // as in Decoder
  const T* gates;        // (M, G*H) what a source adds to x, or null
  const T* pieces;       // (M, 2U) what it adds to the maxout layer, or null
  const T* h_0;          // (L, M, H)
  const T* c_0;          // (L, M, H) LSTM only
  const T* keys;         // (M, S, A) or null: no attention
  const T* values;       // (M, S, C)
  const int64_t* source; // (M) lengths
  SearchOptions options;
  // The results, best first; a hypothesis that does not exist has length 0.
  int32_t* tokens;       // (M, returned, max_tokens), undefined behind the length
  int64_t* lengths;      // (M, returned)
  double* scores;        // (M, returned)
  T* alignments;         // (M, returned, max_tokens, S) or null; the mean of all heads
};

}  // namespace seq2seq_ext
