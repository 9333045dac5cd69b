// A decoder that attends to an encoder's outputs while its cells run, all steps of it: what callers
// hand to the kernels. Plain sizes and pointers, no torch.
//
// A step t of a sequence, for layers l and source positions j (equations, papers:
// seq2seq_ext/decoder/reference.py):
//   cells    z_0 = cell_0(x_t + bias_0 + W_0 feed), z_l = cell_l(bias_l + W_l z_{l-1}), from the
//            layer `residual` on plus z_{l-1}
//   attend   q = W_q z, of the last layer; energies scale <q, key_j> or <v, tanh(q + key_j + w
//            coverage_j)>; alignments their softmax over the source's length, for each head;
//            context the sum of the values by the alignments; coverage the sum of all alignments
//            before
//   combine  attentional = tanh(W_c [context, z] + b_c)
// With `query_first` the order is attend, by the z of the step before, then cells, and feed is the
// context. Else it is cells, attend, combine, and feed is what the step before ended with: the
// attentional vector, or the context where there is none.
//
// Sizes: T steps, B sequences, S source positions, L layers, H hidden units, G gates, A features of
// keys and C of values, each of all heads together, O of the attentional vector, F of the feed (O
// or C), M sequences of the memory. A row is a step of a sequence, t * B + b.
#pragma once

#include <cstdint>

#include "recurrence.h"

namespace seq2seq_ext {

template <typename T>
struct Decoder {
  Cell cell;
  int64_t T_, B, S, L, H, A, C, O, F, heads;
  int64_t residual;  // the first layer whose input is added to its output; 0: none
  bool additive, query_first;
  double scale;           // of products of queries and keys
  const int64_t* length;  // (B) or null: all T
  const int64_t* source;  // (M) lengths, or null: all S
  const int64_t* memory;  // (B) which of the M sequences a row attends to, or null: its own
  const T* x;             // (T, B, G*H)
  const T* const* w_in;   // (L) of (G*H, F), or null: nothing is fed; from the second on (G*H, H)
  int64_t ld_feed;        // from row to row of the first
  const T* const* w_hh;   // (L) of (G*H, H)
  const T* bias;          // (L, G*H) or null
  const T* b_hn;          // (L, H) GRU only, or null
  const T* h_0;           // (L, B, H) or null: zero
  const T* c_0;           // (L, B, H) or null: zero
  const T* feed_0;        // (B, F) or null: zero; not with query_first
  const T* coverage_0;    // (B, S) or null: zero
  const T* keys;          // (M, S, A)
  const T* values;        // (M, S, C)
  const T* w_query;       // (A, H) or null: A is H
  const T* v;             // (A), additive only
  const T* w_coverage;    // (A) additive only, or null: no coverage
  const T* w_out;         // (O, C + H) or null: no attentional vector
  const T* b_out;         // (O) or null
  const T* dropout_mask;  // (L-1, T, B, H) what z_{l-1} is multiplied by on its way up, or null

  constexpr bool attends() const { return C > 0; }
  constexpr bool feeds() const { return w_in[0] != nullptr; }
  constexpr bool feeds_context() const { return query_first || w_out == nullptr; }
  constexpr bool projects() const { return w_query != nullptr; }
  constexpr bool combines() const { return w_out != nullptr; }
  constexpr bool covers() const { return w_coverage != nullptr; }
};

// What forward leaves for backward, beside its results; null pointers where nothing is kept.
template <typename T>
struct DecoderKept {
  T* step;      // (L, N, slots, H) as Kept::step
  T* h_in;      // (L, N, H)
  T* inner;     // (L, N, H) reset before only
  T* below;     // (L-1, N, H) what the layers from the second on have read
  T* query;     // (N, A)
  T* coverage;  // (N, S) before the step
};

template <typename T>
struct DecoderForward : Decoder<T> {
  T* z;            // (N, H) of the last layer
  T* context;      // (N, C)
  T* alignments;   // (N, heads, S)
  T* attentional;  // (N, O)
  T* h_n;          // (L, B, H)
  T* c_n;          // (L, B, H) LSTM only
  T* feed_n;       // (B, F)
  T* coverage_n;   // (B, S) where there is coverage
  DecoderKept<T> kept;
};

template <typename T>
struct DecoderBackward : Decoder<T> {
  DecoderKept<const T> kept;
  const T *context, *alignments, *attentional;              // as forward left them
  const T *d_z, *d_context, *d_alignments, *d_attentional;  // or null: zero
  const T *d_h_n, *d_c_n, *d_feed_n, *d_coverage_n;         // or null: zero
  T* d_gates;        // (L, N, G*H) of x and of W_in's products
  T* d_sum;          // (L, N, G*H) of W_hh h; null where it is d_gates
  T* d_query;        // (N, A)
  T* d_energy;       // (N, heads, S) of the products of queries and keys; null where additive
  T* whole_context;  // (N, C) from wherever it comes
  T* d_out;          // (N, O) of what tanh was taken of
  T* d_keys;         // (B, S, A), additive only
  T* d_v;            // (B, A), additive only: to be summed over B
  T* d_w_coverage;   // (B, A) the same, with coverage
  T* d_h_0;          // (L, B, H)
  T* d_c_0;          // (L, B, H) LSTM only
  T* d_feed_0;       // (B, F)
  T* d_coverage_0;   // (B, S) where there is coverage
};

}  // namespace seq2seq_ext
