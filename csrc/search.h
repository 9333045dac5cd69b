// Greedy and beam search over a decoder, all steps of it: what callers hand to the kernels. Plain
// sizes and pointers, no torch.
//
// Of M sources, each with k beams.
#pragma once

#include <cstdint>

#include "decoding.h"

namespace seq2seq_ext {

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
struct Search : Decoding<T> {
  const T* h_0;  // (L, M, H)
  const T* c_0;  // (L, M, H) LSTM only
  SearchOptions options;
  // The results, best first; a hypothesis that does not exist has length 0.
  int32_t* tokens;   // (M, returned, max_tokens), undefined behind the length
  int64_t* lengths;  // (M, returned)
  double* scores;    // (M, returned)
  T* alignments;     // (M, returned, max_tokens, S) or null; the mean of all heads
};

}  // namespace seq2seq_ext
