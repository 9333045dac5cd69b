// The machine of csrc/row_step.h on a GPU: one block for each sequence, whose threads go through
// the units of a row side by side. Kernels of whole rows share it.
#pragma once

#include "cells.cuh"
#include "device.cuh"

namespace seq2seq_ext::cuda {

#define ROW_STEP __device__ __forceinline__
#include "../row_step.h"
#undef ROW_STEP

// The machine of row_step.h: the threads of a block, a power of two of them.
template <typename Number>
struct ThreadUnits {
  using T = Number;
  using A = Accumulator<T>;
  using V = A;

  template <typename Body>
  __device__ __forceinline__ void units(int64_t n, const Body& body) const {
    for (int64_t u = threadIdx.x; u < n; u += blockDim.x) body(u, 1);
  }
  template <typename X>
  __device__ __forceinline__ V load(const X* row, int64_t u, int64_t) const {
    return widen(row[u]);
  }
  template <typename X>
  __device__ __forceinline__ void store(X* row, int64_t u, int64_t, V v) const {
    if constexpr (std::is_same_v<X, A>) {
      row[u] = v;
    } else {
      row[u] = narrow<X>(v);
    }
  }
  __device__ __forceinline__ A total(V v) const {
    SEQ2SEQ_EXT_DYNAMIC_SHARED(memory);
    A* const sums = reinterpret_cast<A*>(memory);  // one for each thread
    sums[threadIdx.x] = v;
    SEQ2SEQ_EXT_SYNC_THREADS(6);
    for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
      if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
      SEQ2SEQ_EXT_SYNC_THREADS(7);
    }
    const A all = sums[0];
    SEQ2SEQ_EXT_SYNC_THREADS(8);
    return all;
  }
  __device__ __forceinline__ V first(V v, int64_t) const { return v; }
  __device__ __forceinline__ bool leads() const { return threadIdx.x == 0; }

  static __device__ __forceinline__ V sigmoid(V v) { return Functions<T>::sigmoid(v); }
  static __device__ __forceinline__ V tanh(V v) { return Functions<T>::tanh(v); }
  static __device__ __forceinline__ V hard_sigmoid(V v) {
    v = v / A(6) + A(0.5);
    v = v < A(0) ? A(0) : v;  // a NaN stays one
    return v > A(1) ? A(1) : v;
  }
  static __device__ __forceinline__ A inverse_root(A x) { return A(1) / sqrt(x); }
  static __device__ __forceinline__ T narrowed(A x) { return narrow<T>(x); }
  static __device__ __forceinline__ A widened(T x) { return widen(x); }

  __device__ __forceinline__ Drawn<ThreadUnits> noise(const Noise& noise, int64_t t, int64_t b,
                                                      int64_t u) const {
    if (noise.seed == nullptr) return {A(noise.zoneout_h), A(noise.zoneout_c), A(1)};
    const auto seed = static_cast<uint64_t>(*noise.seed);
    const auto happens = [&](uint32_t kind, double probability) {
      if (probability == 0) return false;
      uint32_t n[4] = {(static_cast<uint32_t>(u) & ~3u) + kind, static_cast<uint32_t>(b),
                       static_cast<uint32_t>(t), noise.stream};
      uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
      for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t p = uint64_t{kPhiloxFactor0} * n[0], q = uint64_t{kPhiloxFactor1} * n[2];
        n[0] = static_cast<uint32_t>(q >> 32) ^ n[1] ^ key0;
        n[2] = static_cast<uint32_t>(p >> 32) ^ n[3] ^ key1;
        n[1] = static_cast<uint32_t>(q), n[3] = static_cast<uint32_t>(p);
        key0 += kPhiloxStep0, key1 += kPhiloxStep1;
      }
      const uint32_t even = u & 2 ? n[2] : n[0], odd = u & 2 ? n[3] : n[1];
      return (u & 1 ? odd : even) < threshold(probability);
    };
    return {A(happens(0, noise.zoneout_h) ? 1 : 0), A(happens(1, noise.zoneout_c) ? 1 : 0),
            A(happens(2, noise.candidate) ? 0 : 1 / (1 - noise.candidate))};
  }
};

template <typename T>
__device__ __forceinline__ T* part(T* matrix, int64_t row, int64_t width) {
  return matrix == nullptr ? nullptr : matrix + row * width;
}

template <typename T>
__device__ __forceinline__ void clear_row(T* row, int64_t count) {
  if (row == nullptr) return;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) row[i] = narrow<T>(Accumulator<T>(0));
}

// A block for each of `count` sequences, of about as many threads as their rows have units.
template <typename T, unsigned most = 256, typename... Parameters, typename... Arguments>
cudaError_t launch_rows(void (*kernel)(Parameters...), int64_t count, int64_t units,
                        cudaStream_t stream, Arguments... arguments) {
  unsigned threads = kWarp;
  while (threads < most && threads < units) threads *= 2;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(count));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = threads * sizeof(Accumulator<T>);  // ThreadUnits::total
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// body(cell) with the cell as a type.
template <typename Body>
cudaError_t with_any_cell(Cell cell, const Body& body) {
  switch (cell) {
    case Cell::kLstm:
      return body(std::integral_constant<Cell, Cell::kLstm>());
    case Cell::kCoupledLstm:
      return body(std::integral_constant<Cell, Cell::kCoupledLstm>());
    case Cell::kGru:
      return body(std::integral_constant<Cell, Cell::kGru>());
    case Cell::kGruResetBefore:
      return body(std::integral_constant<Cell, Cell::kGruResetBefore>());
    case Cell::kRnnTanh:
      return body(std::integral_constant<Cell, Cell::kRnnTanh>());
    case Cell::kRnnRelu:
      return body(std::integral_constant<Cell, Cell::kRnnRelu>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace seq2seq_ext::cuda
