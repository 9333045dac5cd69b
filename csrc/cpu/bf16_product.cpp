// Products of bfloat16 weights: see narrow_product.h.
#include "narrow_product.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "row_tiles.h"

// GCC 12 takes the undefined operand that its own header hands to masked intrinsics for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

namespace seq2seq_ext {
namespace {

constexpr int64_t kAhead = 16;  // rows of the panel that a prefetch runs ahead

// The nearest bfloat16 of each of 16 floats, as the upper half of a lane; a NaN stays one.
inline __attribute__((always_inline)) __m512i nearest(__m512 x) {
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16);
}

void split(const float* a, int64_t K, const Bf16Rows& rows, int64_t row) {
  const auto in = [&](int64_t k) {
    return static_cast<__mmask16>(K - k >= 16 ? 0xffff : (1 << (K - k)) - 1);
  };
  auto* const first = reinterpret_cast<uint16_t*>(rows.pairs + row * 2 * rows.width);
  auto* const second = first + 2 * rows.width;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), infinity = _mm512_set1_epi32(0x7f800000);
  for (int64_t k = 0; k < 2 * rows.width; k += 16) {
    const __m512 x = k < K ? _mm512_maskz_loadu_ps(in(k), a + k) : _mm512_setzero_ps();
    const __m512i near = nearest(x);
    // Nothing is left of what is not finite.
    const __mmask16 finite = _mm512_cmplt_epi32_mask(_mm512_and_si512(near, magnitude), infinity);
    const __m512 left = _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(near));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first + k),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second + k), (__m256i)_mm512_cvtneps_pbh(left));
  }
}

// sum += products of two pairs. In assembly for the reason given in int8_product.cpp.
inline __attribute__((always_inline)) void add_dots(__m512& sum, __m512i weights, __m512i pairs) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(pairs));
}

template <int MR, int V, bool prefetch>
void multiply_tile(const Bf16Rows& rows, const NarrowProduct& p, int64_t row) {
  __m512 first[MR][V], second[MR][V];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) first[m][v] = second[m][v] = _mm512_setzero_ps();
  }
  const int64_t groups = (p.K + 1) / 2, width = rows.width;
  const int32_t* const a = rows.pairs + row * 2 * width;
  const int32_t* units = p.units;
  for (int64_t k = 0; k < groups; ++k, units += V * 16) {
    __m512i columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if (prefetch) __builtin_prefetch(units + (kAhead * V + v) * 16);
      columns[v] = _mm512_loadu_si512(units + v * 16);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const __m512i near = _mm512_set1_epi32(a[m * 2 * width + k]);
      const __m512i left = _mm512_set1_epi32(a[(m * 2 + 1) * width + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        add_dots(first[m][v], columns[v], near);
        add_dots(second[m][v], columns[v], left);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m512 sum = _mm512_add_ps(first[m][v], second[m][v]);
      const __m512 to =
          p.add ? _mm512_loadu_ps(p.add + (row + m) * p.ldadd + v * 16) : _mm512_setzero_ps();
      _mm512_storeu_ps(p.c + (row + m) * p.ldc + v * 16, _mm512_add_ps(sum, to));
    }
  }
}

// Twice MR * V sums, V vectors of the panel and two of the rows fit in 32 registers.
template <int V>
void multiply_panel(const Bf16Rows& rows, const NarrowProduct& p) {
  constexpr int kRows = V == 4 ? 3 : V == 3 ? 4 : V == 2 ? 6 : 8;
  for_tiles<kRows>(p.rows, [&](int64_t row, auto height) {
    if (height <= 2 && p.far) return multiply_tile<height, V, true>(rows, p, row);
    multiply_tile<height, V, false>(rows, p, row);
  });
}

void multiply(const Bf16Rows& rows, const NarrowProduct& p) {
  with_vectors(p.vectors, [&](auto v) { multiply_panel<v>(rows, p); });
}

}  // namespace
}  // namespace seq2seq_ext

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const seq2seq_ext::NarrowKernels<seq2seq_ext::Bf16Rows>& seq2seq_ext::bf16_kernels(
    int vector_bytes) {
  static const bool bf16 = __builtin_cpu_supports("avx512bf16") &&
                           __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const NarrowKernels<Bf16Rows> none, of_bf16{&split, &multiply};
  return vector_bytes == 64 && bf16 ? of_bf16 : none;
}

bool seq2seq_ext::bf16_pays() {
  static const bool pays = !__builtin_cpu_is("intel");
  return pays;
}

#else

const seq2seq_ext::NarrowKernels<seq2seq_ext::Bf16Rows>& seq2seq_ext::bf16_kernels(int) {
  static const NarrowKernels<Bf16Rows> none;
  return none;
}

bool seq2seq_ext::bf16_pays() { return false; }

#endif
