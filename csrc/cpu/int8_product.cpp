// Products of 8-bit weights: see narrow_product.h.
#include "narrow_product.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>

#include "row_tiles.h"

// GCC 12 takes the undefined operand that its own header hands to masked intrinsics for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace seq2seq_ext {
namespace {

// As two signed bytes, 127 * 256 + 127 is the largest; rounded up it must not leave 16 bits.
constexpr float kLargest = 127 * 256 + 127;
// A row below counts as zero: the inverse of its scale would overflow.
constexpr float kSmallest = 0x1p-100f;
constexpr int32_t kInfinity = 0x7f800000;  // the bits of it, and of nothing finite
constexpr int64_t kAhead = 16;             // rows of the panel that a prefetch runs ahead

// Of a row that is not finite the integers are of no account, and may overflow.
inline int32_t times_128(int32_t sum) {
  return static_cast<int32_t>(static_cast<uint32_t>(sum) << 7);
}

}  // namespace
}  // namespace seq2seq_ext

// ---- AVX-512 VNNI: a = 256 high + low, two signed bytes -----------------------------------------
//
// A row is `width` high bytes, then `width` low ones. With h and l their sums,
//   sum of q a = 256 (sum of (q + 128) high - 128 h) + (sum of (q + 128) low - 128 l).

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

namespace seq2seq_ext {
namespace {

void round_vnni(const float* a, int64_t K, const Int16Rows& rows, int64_t row) {
  const auto in = [&](int64_t k) {
    return static_cast<__mmask16>(K - k >= 16 ? 0xffff : (1 << (K - k)) - 1);
  };
  // As integers, magnitudes of floats are ordered, infinity and NaN behind all others.
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t k = 0; k < K; k += 16) {
    const __m512i x = _mm512_castps_si512(_mm512_maskz_loadu_ps(in(k), a + k));
    largest = _mm512_max_epi32(largest, _mm512_and_si512(x, magnitude));
  }
  const int32_t bits = _mm512_reduce_max_epi32(largest);
  const float most = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  rows.scale[row] = bits < kInfinity ? most / kLargest : __builtin_nanf("");

  const __m512 inverse = _mm512_set1_ps(most > kSmallest ? kLargest / most : 0.0f);
  int8_t* const high = rows.bytes + row * 2 * rows.width;
  int8_t* const low = high + rows.width;
  __m512i high_total = _mm512_setzero_si512(), low_total = high_total;
  for (int64_t k = 0; k < rows.width; k += 16) {
    const __m512 x = k < K ? _mm512_maskz_loadu_ps(in(k), a + k) : _mm512_setzero_ps();
    const __m512i integer = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(integer, _mm512_set1_epi32(128)), 8);
    const __m512i lower = _mm512_sub_epi32(integer, _mm512_slli_epi32(upper, 8));
    high_total = _mm512_add_epi32(high_total, upper);
    low_total = _mm512_add_epi32(low_total, lower);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + k), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + k), _mm512_cvtepi32_epi8(lower));
  }
  rows.total[rows.totals * row] = times_128(_mm512_reduce_add_epi32(high_total));
  rows.total[rows.totals * row + 1] = times_128(_mm512_reduce_add_epi32(low_total));
}

// sum += dot products of four pairs of bytes, unsigned times signed. The intrinsic for it makes GCC
// copy every sum from register to register.
inline __attribute__((always_inline)) void add_dots(__m512i& sum, __m512i bytes, __m512i digits) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(digits));
}

template <int MR, int V, bool prefetch>
void multiply_tile_vnni(const Int16Rows& rows, const NarrowProduct& p, int64_t row) {
  __m512i high[MR][V], low[MR][V];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) high[m][v] = low[m][v] = _mm512_setzero_si512();
  }
  const int64_t groups = (p.K + 3) / 4, width = rows.width;
  const int8_t* const a = rows.bytes + row * 2 * width;
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
        add_dots(high[m][v], columns[v], upper);
        add_dots(low[m][v], columns[v], lower);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const __m512 scale = _mm512_set1_ps(rows.scale[row + m] * (1.0f / 256));
    const __m512i high_total = _mm512_set1_epi32(rows.total[rows.totals * (row + m)]);
    const __m512i low_total = _mm512_set1_epi32(rows.total[rows.totals * (row + m) + 1]);
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

// Twice MR * V sums, V vectors of the panel and two of the rows fit in 32 registers.
template <int V>
void multiply_panel_vnni(const Int16Rows& rows, const NarrowProduct& p) {
  constexpr int kRows = V == 4 ? 3 : V == 3 ? 4 : V == 2 ? 6 : 8;
  for_tiles<kRows>(p.rows, [&](int64_t row, auto height) {
    if (height <= 2 && p.far) return multiply_tile_vnni<height, V, true>(rows, p, row);
    multiply_tile_vnni<height, V, false>(rows, p, row);
  });
}

void multiply_vnni(const Int16Rows& rows, const NarrowProduct& p) {
  with_vectors(p.vectors, [&](auto v) { multiply_panel_vnni<v>(rows, p); });
}

}  // namespace
}  // namespace seq2seq_ext

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

// ---- AVX2: a is one 16-bit word -----------------------------------------------------------------
//
// Of four consecutive k, words 0 and 2 come before 1 and 3: a mask and a shift make the same two
// pairs of words out of a unit's bytes. A run of k has a sum of its own, which becomes a float.

namespace seq2seq_ext {
namespace {

constexpr int64_t kRun = Int16Rows::kRun;

int32_t reduce_add(__m256i x) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

int32_t reduce_max(__m256i x) {
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
}

void round_avx2(const float* a, int64_t K, const Int16Rows& rows, int64_t row) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto vector = [&](int64_t k) {
    const auto count = static_cast<int32_t>(std::min<int64_t>(K - k, 8));
    return _mm256_maskload_ps(a + k, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes));
  };
  // As integers, magnitudes of floats are ordered, infinity and NaN behind all others.
  __m256i largest = _mm256_setzero_si256();
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t k = 0; k < K; k += 8) {
    const __m256i x = _mm256_castps_si256(vector(k));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(x, magnitude));
  }
  const int32_t bits = reduce_max(largest);
  const float most = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  rows.scale[row] = bits < kInfinity ? most / kLargest : __builtin_nanf("");

  const __m256 inverse = _mm256_set1_ps(most > kSmallest ? kLargest / most : 0.0f);
  const __m256i order = _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7);
  int8_t* const words = rows.bytes + row * 2 * rows.width;
  for (int64_t run = 0; run < rows.width; run += kRun) {
    __m256i total = _mm256_setzero_si256();
    for (int64_t k = run; k < std::min(run + kRun, rows.width); k += 8) {
      const __m256 x = k < K ? vector(k) : _mm256_setzero_ps();
      const __m256i integer = _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse));
      total = _mm256_add_epi32(total, integer);
      const __m256i ordered = _mm256_permutevar8x32_epi32(integer, order);
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(words + 2 * k),
          _mm_packs_epi32(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
    }
    rows.total[rows.totals * row + run / kRun] = times_128(reduce_add(total));
  }
}

template <int MR, int V, bool prefetch>
void multiply_tile_avx2(const Int16Rows& rows, const NarrowProduct& p, int64_t row) {
  const int64_t width = rows.width;
  const int8_t* const a = rows.bytes + row * 2 * width;
  const __m256i even = _mm256_set1_epi32(0x00ff00ff);
  const int32_t* units = p.units;
  __m256 sums[MR][V];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[m][v] = _mm256_setzero_ps();
  }
  for (int64_t run = 0; run < p.K; run += kRun) {
    __m256i part[MR][V];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) part[m][v] = _mm256_setzero_si256();
    }
    const int64_t end = std::min(run + kRun, p.K);
    for (int64_t k = run; k < end; k += 4, units += V * 8) {
      __m256i words[MR][2];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        int32_t pairs[2];
        __builtin_memcpy(pairs, a + 2 * (m * width + k), 8);
        words[m][0] = _mm256_set1_epi32(pairs[0]);
        words[m][1] = _mm256_set1_epi32(pairs[1]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        if (prefetch && v % 2 == 0) __builtin_prefetch(units + (kAhead * V + v) * 8);
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(units) + v);
        const __m256i first = _mm256_and_si256(bytes, even), second = _mm256_srli_epi16(bytes, 8);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(first, words[m][0]),
                                                _mm256_madd_epi16(second, words[m][1]));
          part[m][v] = _mm256_add_epi32(part[m][v], both);
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const __m256i total = _mm256_set1_epi32(rows.total[rows.totals * (row + m) + run / kRun]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(part[m][v], total));
        sums[m][v] = _mm256_add_ps(sums[m][v], sum);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const __m256 scale = _mm256_set1_ps(rows.scale[row + m] * (1.0f / 256));
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const __m256 factor = _mm256_mul_ps(scale, _mm256_loadu_ps(p.scale + v * 8));
      const __m256 to =
          p.add ? _mm256_loadu_ps(p.add + (row + m) * p.ldadd + v * 8) : _mm256_setzero_ps();
      _mm256_storeu_ps(p.c + (row + m) * p.ldc + v * 8, _mm256_fmadd_ps(sums[m][v], factor, to));
    }
  }
}

// MR * V sums, two pairs of words of each row, a mask and three of the moment fit in 16 registers.
template <int V>
void multiply_panel_avx2(const Int16Rows& rows, const NarrowProduct& p) {
  constexpr int kRows = V > 2 ? 2 : V == 2 ? 3 : 4;
  for_tiles<kRows>(p.rows, [&](int64_t row, auto height) {
    if (height <= 2 && p.far) return multiply_tile_avx2<height, V, true>(rows, p, row);
    multiply_tile_avx2<height, V, false>(rows, p, row);
  });
}

void multiply_avx2(const Int16Rows& rows, const NarrowProduct& p) {
  with_vectors(p.vectors, [&](auto v) { multiply_panel_avx2<v>(rows, p); });
}

}  // namespace
}  // namespace seq2seq_ext

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const seq2seq_ext::NarrowKernels<seq2seq_ext::Int16Rows>& seq2seq_ext::int8_kernels(
    int vector_bytes) {
  static const bool vnni = __builtin_cpu_supports("avx512vnni") &&
                           __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const NarrowKernels<Int16Rows> none, of_vnni{&round_vnni, &multiply_vnni},
      of_avx2{&round_avx2, &multiply_avx2};
  return vector_bytes == 64 && vnni ? of_vnni : vector_bytes == 32 && avx2 ? of_avx2 : none;
}

#else

const seq2seq_ext::NarrowKernels<seq2seq_ext::Int16Rows>& seq2seq_ext::int8_kernels(int) {
  static const NarrowKernels<Int16Rows> none;
  return none;
}

#endif
