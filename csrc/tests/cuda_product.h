// What stands in tests of CUDA kernels where the glue has a library's product.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace seq2seq_ext::cuda {

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
