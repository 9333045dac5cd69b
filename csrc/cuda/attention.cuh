// Attention of one query to the positions of one source by the threads of a block, forward and
// backward: what a decoder's step does between its cells (csrc/decoder.h). A warp takes a position
// of a head at a time where features are summed, a thread a feature where positions are.
//
// The barriers within order what the block's threads write and read; what a caller hands over is
// either from another kernel or from the very threads that read it.
#pragma once

#include <cmath>

#include "../decoder.h"
#include "cells.cuh"
#include "device.cuh"

namespace seq2seq_ext::cuda {

// `n` of the positions are there. X is what the coverage is stored as.
template <typename T, typename X>
struct Attention {
  const Decoder<T>& d;
  int64_t n;
  const T* query;     // (A)
  const T* keys;      // (S, A)
  const T* values;    // (S, C)
  const X* coverage;  // (S), read with w_coverage only
};

template <typename A>
__device__ __forceinline__ A warp_total(A v) {
  for (int i = kWarp / 2; i > 0; i /= 2) v += __shfl_xor_sync(kAllLanes, v, i);
  return v;
}

template <typename A>
__device__ __forceinline__ A warp_highest(A v) {
  for (int i = kWarp / 2; i > 0; i /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, v, i);
    v = other > v ? other : v;
  }
  return v;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }

// body(p, lane) for this warp's share of `count` things, with all of its lanes.
template <typename Body>
__device__ __forceinline__ void each_of_warp(int64_t count, const Body& body) {
  const int64_t warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t p = threadIdx.x / kWarp; p < count; p += warps) body(p, lane);
}

// body(i) for this thread's share of `count` things.
template <typename Body>
__device__ __forceinline__ void each_of_thread(int64_t count, const Body& body) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) body(i);
}

// tanh(query + key_j + w coverage_j), of feature k.
template <typename T, typename X>
__device__ __forceinline__ Accumulator<T> additive_tanh(const Attention<T, X>& a, int64_t j,
                                                        int64_t k) {
  Accumulator<T> sum = widen(a.query[k]) + widen(a.keys[j * a.d.A + k]);
  if (a.d.w_coverage != nullptr) sum += widen(a.d.w_coverage[k]) * widen(a.coverage[j]);
  return Functions<T>::tanh(sum);
}

// Leaves in `energy` (heads, S) the alignments of the positions that are there, in `alignments`
// (heads, S) the same with zeros behind, in `context` (C) the sum of the values by them.
template <typename T, typename X>
__device__ __forceinline__ void attend(const Attention<T, X>& a, Accumulator<T>* energy,
                                       T* alignments, T* context) {
  using A = Accumulator<T>;
  const Decoder<T>& d = a.d;
  const int64_t S = d.S, width = d.A / d.heads, columns = d.C / d.heads;
  each_of_warp(d.heads * a.n, [&](int64_t p, int64_t lane) {
    const int64_t head = p / a.n, j = p % a.n;
    A sum = 0;
    if (d.additive) {
      for (int64_t k = lane; k < d.A; k += kWarp) sum += widen(d.v[k]) * additive_tanh(a, j, k);
    } else {
      const T* const query = a.query + head * width;
      const T* const key = a.keys + j * d.A + head * width;
      for (int64_t k = lane; k < width; k += kWarp) sum += widen(query[k]) * widen(key[k]);
      sum *= A(d.scale);
    }
    sum = warp_total(sum);
    if (lane == 0) energy[head * S + j] = sum;
  });
  SEQ2SEQ_EXT_SYNC_THREADS(11);
  each_of_warp(d.heads, [&](int64_t head, int64_t lane) {
    A* const own = energy + head * S;
    A highest = -INFINITY, total = 0;
    for (int64_t j = lane; j < a.n; j += kWarp) highest = own[j] > highest ? own[j] : highest;
    highest = warp_highest(highest);
    for (int64_t j = lane; j < a.n; j += kWarp) total += own[j] = exponential(own[j] - highest);
    total = warp_total(total);
    for (int64_t j = lane; j < S; j += kWarp) {
      const A alignment = j < a.n ? own[j] / total : A(0);
      if (j < a.n) own[j] = alignment;
      alignments[head * S + j] = narrow<T>(alignment);
    }
  });
  SEQ2SEQ_EXT_SYNC_THREADS(12);
  each_of_thread(d.C, [&](int64_t c) {
    const A* const own = energy + c / columns * S;
    A sum = 0;
    for (int64_t j = 0; j < a.n; ++j) sum += own[j] * widen(a.values[j * d.C + c]);
    context[c] = narrow<T>(sum);
  });
}

// Where the gradients of one attention go. `d_coverage` comes with that of the coverage behind the
// step and leaves with that before it.
template <typename T>
struct AttentionGradients {
  const T* d_context;          // (C)
  const T* d_alignments;       // (heads, S) or null: zero
  Accumulator<T>* d_coverage;  // (S), with w_coverage only
  T* d_query;                  // (A)
  Accumulator<T>* energy;      // (heads, S) that of the energies
  T* d_energy;                 // (heads, S) the same times the scale, of <query, key>; or null
};

template <typename T, typename X>
__device__ __forceinline__ void attend_backward(const Attention<T, X>& a, const T* alignments,
                                                const AttentionGradients<T>& g) {
  using A = Accumulator<T>;
  const Decoder<T>& d = a.d;
  const int64_t S = d.S, width = d.A / d.heads, columns = d.C / d.heads;
  const bool covers = d.w_coverage != nullptr;
  SEQ2SEQ_EXT_SYNC_THREADS(13);  // d_context
  each_of_warp(d.heads * a.n, [&](int64_t p, int64_t lane) {
    const int64_t head = p / a.n, j = p % a.n;
    const T* const by = g.d_context + head * columns;
    const T* const value = a.values + j * d.C + head * columns;
    A sum = 0;
    for (int64_t c = lane; c < columns; c += kWarp) sum += widen(by[c]) * widen(value[c]);
    sum = warp_total(sum);
    if (lane != 0) return;
    if (g.d_alignments != nullptr) sum += widen(g.d_alignments[head * S + j]);
    if (covers) sum += g.d_coverage[j];
    g.energy[head * S + j] = sum;
  });
  SEQ2SEQ_EXT_SYNC_THREADS(14);
  each_of_warp(d.heads, [&](int64_t head, int64_t lane) {
    A* const own = g.energy + head * S;
    const T* const weights = alignments + head * S;
    A along = 0;
    for (int64_t j = lane; j < a.n; j += kWarp) along += widen(weights[j]) * own[j];
    along = warp_total(along);
    for (int64_t j = lane; j < S; j += kWarp) {
      const A energy = j < a.n ? widen(weights[j]) * (own[j] - along) : A(0);
      if (j < a.n) own[j] = d.additive ? energy : energy * A(d.scale);
      if (g.d_energy != nullptr) g.d_energy[head * S + j] = narrow<T>(energy * A(d.scale));
    }
  });
  SEQ2SEQ_EXT_SYNC_THREADS(15);
  each_of_thread(d.A, [&](int64_t k) {
    const A* const own = g.energy + (d.additive ? 0 : k / width * S);
    A sum = 0;
    for (int64_t j = 0; j < a.n; ++j) {
      if (d.additive) {
        const A s = additive_tanh(a, j, k);
        sum += own[j] * widen(d.v[k]) * (A(1) - s * s);
      } else {
        sum += own[j] * widen(a.keys[j * d.A + k]);
      }
    }
    g.d_query[k] = narrow<T>(sum);
  });
  if (!covers) return;
  each_of_warp(a.n, [&](int64_t j, int64_t lane) {
    A sum = 0;
    for (int64_t k = lane; k < d.A; k += kWarp) {
      const A s = additive_tanh(a, j, k);
      sum += widen(d.w_coverage[k]) * widen(d.v[k]) * (A(1) - s * s);
    }
    sum = warp_total(sum);
    if (lane == 0) g.d_coverage[j] += g.energy[j] * sum;
  });
}

}  // namespace seq2seq_ext::cuda
