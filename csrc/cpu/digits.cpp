#include "digits.h"

#if defined(__x86_64__)
#include <immintrin.h>

// GCC 12 takes the undefined operand that its own header hands to masked intrinsics for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

namespace seq2seq_ext {
namespace {

// high = round(a / 256) and low = a - 256 high lie within a signed byte for |a| <= 127 * 256 + 127.
constexpr float kLargest = 127 * 256 + 127;

void make_digits(const float* a, int64_t K, const Digits& digits, int64_t row) {
  const auto in = [&](int64_t k) {
    return static_cast<__mmask16>(K - k >= 16 ? 0xffff : (1 << (K - k)) - 1);
  };
  // As integers, magnitudes of floats are ordered, infinity and NaN behind all others.
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t k = 0; k < K; k += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(in(k), a + k);
    largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(x), magnitude));
  }
  const int32_t bits = _mm512_reduce_max_epi32(largest);
  const float most = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  // A row below 2^-100 counts as zero: the inverse of its scale would overflow.
  const float inverse = most > 0x1p-100f ? kLargest / most : 0.0f;
  digits.scale[row] = bits < 0x7f800000 ? most / kLargest : __builtin_nanf("");

  int8_t* high = digits.bytes + row * 2 * digits.width;
  int8_t* low = high + digits.width;
  __m512i high_total = _mm512_setzero_si512(), low_total = high_total;
  for (int64_t k = 0; k < digits.width; k += 16) {
    const __m512 x = k < K ? _mm512_maskz_loadu_ps(in(k), a + k) : _mm512_setzero_ps();
    const __m512i integer = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(integer, _mm512_set1_epi32(128)), 8);
    const __m512i lower = _mm512_sub_epi32(integer, _mm512_slli_epi32(upper, 8));
    high_total = _mm512_add_epi32(high_total, upper);
    low_total = _mm512_add_epi32(low_total, lower);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + k), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + k), _mm512_cvtepi32_epi8(lower));
  }
  digits.total[2 * row] = 128 * _mm512_reduce_add_epi32(high_total);
  digits.total[2 * row + 1] = 128 * _mm512_reduce_add_epi32(low_total);
}

// Rows of a tile with V vectors: twice as many sums, the panel's vectors and, with room to spare,
// what the compiler needs.
template <int V>
constexpr int kRows = V == 4   ? 3
                      : V == 3 ? 4
                      : V == 2 ? 6
                               : 8;
constexpr int64_t kAhead = 16;  // rows of the panel that a prefetch runs ahead

template <int MR, int V, bool prefetch>
inline void multiply_tile(const Digits& digits, const DigitProduct& p, int64_t row) {
  __m512i high[MR][V], low[MR][V];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) high[m][v] = low[m][v] = _mm512_setzero_si512();
  }
  const int8_t* const a = digits.bytes + row * 2 * digits.width;
  const int64_t groups = (p.K + 3) / 4, width = digits.width;
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
      int32_t both[2];
      __builtin_memcpy(&both[0], a + m * 2 * width + 4 * k, 4);
      __builtin_memcpy(&both[1], a + (m * 2 + 1) * width + 4 * k, 4);
      const __m512i upper = _mm512_set1_epi32(both[0]), lower = _mm512_set1_epi32(both[1]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        high[m][v] = _mm512_dpbusd_epi32(high[m][v], columns[v], upper);
        low[m][v] = _mm512_dpbusd_epi32(low[m][v], columns[v], lower);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const __m512 scale = _mm512_set1_ps(digits.scale[row + m] * (1.0f / 256));
    const __m512i high_total = _mm512_set1_epi32(digits.total[2 * (row + m)]);
    const __m512i low_total = _mm512_set1_epi32(digits.total[2 * (row + m) + 1]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m512 upper = _mm512_cvtepi32_ps(_mm512_sub_epi32(high[m][v], high_total));
      const __m512 lower = _mm512_cvtepi32_ps(_mm512_sub_epi32(low[m][v], low_total));
      const __m512 sum = _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0f), lower);
      const __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(p.scale + v * 16));
      const __m512 to =
          p.add ? _mm512_loadu_ps(p.add + (row + m) * p.ldadd + v * 16) : _mm512_setzero_ps();
      _mm512_storeu_ps(p.c + (row + m) * p.ldc + v * 16, _mm512_fmadd_ps(sum, factor, to));
    }
  }
}

template <int V, int MR = kRows<V>>
void multiply_rows(int64_t rows, const Digits& digits, const DigitProduct& p, int64_t row) {
  if (rows == MR) {
    return MR <= 2 && p.far ? multiply_tile<MR, V, true>(digits, p, row)
                            : multiply_tile<MR, V, false>(digits, p, row);
  }
  if constexpr (MR > 1) multiply_rows<V, MR - 1>(rows, digits, p, row);
}

template <int V>
void multiply_panel(const Digits& digits, const DigitProduct& p) {
  const int64_t tiles = (p.rows + kRows<V> - 1) / kRows<V>;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = p.rows * i / tiles;
    multiply_rows<V>(p.rows * (i + 1) / tiles - row, digits, p, row);
  }
}

void multiply_digits(const Digits& digits, const DigitProduct& p) {
  switch (p.vectors) {
    case 1:
      return multiply_panel<1>(digits, p);
    case 2:
      return multiply_panel<2>(digits, p);
    case 3:
      return multiply_panel<3>(digits, p);
    default:
      return multiply_panel<4>(digits, p);
  }
}

}  // namespace
}  // namespace seq2seq_ext

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace seq2seq_ext {
namespace {

DigitKernels choose() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return {&make_digits, &multiply_digits};
  return {};
}

}  // namespace

const DigitKernels digit_kernels = choose();

}  // namespace seq2seq_ext

#else

const seq2seq_ext::DigitKernels seq2seq_ext::digit_kernels;

#endif
