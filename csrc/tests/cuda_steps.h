// What tests of kernels of single steps share: schedules of the threads, a count of what went
// wrong, and what stands where the glue has a library's product.
#pragma once

#include <cstdint>
#include <cstdio>

#include "cuda/device.cuh"

namespace seq2seq_ext::cuda {

inline constexpr const char* kSchedules[] = {"forward", "reverse", "random:1", "random:2"};
inline int checks = 0, failures = 0;

inline void expect(cudaError_t error) {
  if (error != cudaSuccess) {
    std::printf("CUDA error: %s\n", cudaGetErrorString(error));
    ++failures;
  }
}

// c (rows, n) = a (rows, k; lda) times w (k, n; ldw) or, if turned, its transpose's (n, k; ldw).
template <typename T>
void multiply(int64_t rows, int64_t k, int64_t n, const T* a, int64_t lda, const T* w, int64_t ldw,
              bool turned, T* c) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum +=
            double(widen(a[i * lda + l])) * double(widen(turned ? w[j * ldw + l] : w[l * ldw + j]));
      c[i * n + j] = narrow<T>(Accumulator<T>(sum));
    }
}

}  // namespace seq2seq_ext::cuda
