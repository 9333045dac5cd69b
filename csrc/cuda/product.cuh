// A warp's part of the product with the recurrent weights, which stay where they are for the whole
// sequence: as many as fit in its registers, the rest in shared memory.
//
// A warp owns 8 rows of weights for each of G kinds (the gates of 8 hidden units; backward: 8
// units) and a slice of the features k. It multiplies them with vectors that arrive for 16
// sequences. k is cut into chunks of 64 bytes of one vector, and a chunk into 4 pieces of 16 bytes;
// lane 4 r + q holds piece q of row r, of weights and of vectors alike, so that each lane loads
// what it waits for in one access, straight into the registers from which it is multiplied.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace seq2seq_ext::cuda {

template <typename T>
constexpr int kPerChunk = kChunkBytes / static_cast<int>(sizeof(T));

// By the tensor cores, in tiles of 16 x 8: two kinds of weights side by side make the 16 rows.
template <typename T, int G>
struct TensorProduct {
  using Sum = float;
  static constexpr int kHeld = held_chunks(sizeof(T), G, true);
  static constexpr int kColumnTiles = 2;  // of 8 sequences, multiplied at a time
  static constexpr int kStageBytes = stage_bytes(true);
  static constexpr int kPairs = (G + 1) / 2;

  Sum sum[kPairs][kColumnTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kPairs; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] = 0;
  }

  static __device__ __forceinline__ Piece prepare(Piece p) {
    if constexpr (std::is_same_v<T, float>)
#pragma unroll
      for (int i = 0; i < 4; ++i) p.word[i] = tensor_word<T>(p.word[i]);
    return p;
  }

  __device__ __forceinline__ void add(const Piece (&w)[G], const Piece (&v)[kColumnTiles],
                                      unsigned char*) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const Piece x = prepare(v[n]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t b[2] = {x.word[2 * j], x.word[2 * j + 1]};
#pragma unroll
        for (int m = 0; m < kPairs; ++m) {
          const bool both = 2 * m + 1 < G;
          const Piece& low = w[2 * m];
          const Piece& high = w[both ? 2 * m + 1 : 2 * m];
          const uint32_t a[4] = {low.word[2 * j], low.word[2 * j + 1], both ? high.word[2 * j] : 0u,
                                 both ? high.word[2 * j + 1] : 0u};
          multiply_tile<T>(sum[m][n], a, b);
        }
      }
    }
  }

  // Puts the sums where the whole block reads them: (G * 8, kPartialLead).
  __device__ __forceinline__ void store(Sum* partial) const {
    const int lane = threadIdx.x % kWarp, r = lane / 4, q = lane % 4;
#pragma unroll
    for (int m = 0; m < kPairs; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int g = 2 * m + i / 2;
          if (g < G)
            partial[(g * kTileRows + r) * kPartialLead + 8 * n + 2 * q + i % 2] = sum[m][n][i];
        }
  }
};

// By plain multiply-adds in T's own precision: a lane multiplies piece q of its rows with piece q
// of 8 vectors, which the lanes that loaded them lay in shared memory; at the end 4 lanes add up.
template <typename T, int G>
struct ScalarProduct {
  using Sum = Accumulator<T>;
  static constexpr int kHeld = held_chunks(sizeof(T), G, false);
  static constexpr int kColumnTiles = 1;
  static constexpr int kStageBytes = stage_bytes(false);
  static constexpr int kPer = kPerPiece<T>;

  Sum sum[G][8];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int n = 0; n < 8; ++n) sum[g][n] = 0;
  }

  static __device__ __forceinline__ Piece prepare(const Piece& p) { return p; }

  static __device__ __forceinline__ T number(const Piece& p, int i) {
    if constexpr (sizeof(T) == 8) {
      return __longlong_as_double(static_cast<long long>(
          static_cast<unsigned long long>(p.word[2 * i + 1]) << 32 | p.word[2 * i]));
    } else {
      return __uint_as_float(p.word[i]);
    }
  }

  __device__ __forceinline__ void add(const Piece (&w)[G], const Piece (&v)[1],
                                      unsigned char* stage) {
    const int lane = threadIdx.x % kWarp, q = lane % 4;
    Piece* pieces = reinterpret_cast<Piece*>(stage);
    pieces[lane] = v[0];
    SEQ2SEQ_EXT_SYNC_WARP(1);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const Piece x = pieces[4 * n + q];
#pragma unroll
      for (int i = 0; i < kPer; ++i)
#pragma unroll
        for (int g = 0; g < G; ++g) sum[g][n] += number(w[g], i) * number(x, i);
    }
    SEQ2SEQ_EXT_SYNC_WARP(2);
  }

  __device__ __forceinline__ void store(Sum* partial) const {
    const int lane = threadIdx.x % kWarp, r = lane / 4, q = lane % 4;
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        Sum total = sum[g][n];
        total += __shfl_xor_sync(kAllLanes, total, 1);
        total += __shfl_xor_sync(kAllLanes, total, 2);
        if (q == n % 4) partial[(g * kTileRows + r) * kPartialLead + n] = total;
      }
  }
};

}  // namespace seq2seq_ext::cuda
