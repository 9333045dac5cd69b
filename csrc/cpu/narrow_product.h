// Products of bfloat16 and 8-bit weights as they are, by instructions that multiply several of them
// a lane: AVX-512 BF16 32 pairs of bfloat16, AVX-512 VNNI 64 pairs of bytes, AVX2 16 pairs of
// 16-bit words, where a register holds 16 or 8 floats.
//
// What the weights are multiplied by has to take the same form, and keeps 16 bits in it: beside the
// rounding of the weights to 8 bits that does not show.
// - bfloat16: as a sum of two, the nearest one and the nearest to what is left.
// - 8 bits: as a 16-bit integer with one scale for each row, whose largest magnitude becomes 32639.
//   Weights' bytes, q + 128, are unsigned. Sums are exact integers, 128 times the sum of a row is
//   taken off again, and both scales are applied once, in float.
#pragma once

#include <cstdint>

namespace seq2seq_ext {

// Rows as sums of two bfloat16.
struct Bf16Rows {
  static constexpr int64_t kMostK = int64_t{1} << 40;

  int32_t* pairs;  // (rows, 2, width) of two consecutive k: the first parts, then the second ones
  int64_t width;   // a multiple of 16; what lies behind the last k is 0

  static constexpr int64_t width_for(int64_t K) { return (K + 31) / 32 * 16; }
  // Bytes of memory, a multiple of 64, for so many rows.
  static constexpr int64_t size(int64_t rows, int64_t K) { return rows * 8 * width_for(K); }
  // Lays them out in memory of that size.
  Bf16Rows(void* memory, int64_t, int64_t K)
      : pairs(static_cast<int32_t*>(memory)), width(width_for(K)) {}
};

// Rows of 16-bit integers, laid out as the kernels want them.
struct Int16Rows {
  static constexpr int64_t kMostK = 1 << 16;  // 255 * 128 * K fits in 31 bits
  static constexpr int64_t kRun = 256;        // 255 * 32639 * kRun does

  int8_t* bytes;   // (rows, 2 * width); what lies behind the first K integers is 0
  int64_t width;   // a multiple of 64
  int64_t totals;  // of a row
  float* scale;    // (rows) of the integers
  int32_t* total;  // (rows, totals): 128 times the sums of runs of integers, or of their bytes

  static constexpr int64_t width_for(int64_t K) { return (K + 63) / 64 * 64; }
  static constexpr int64_t totals_for(int64_t K) {
    return K > 2 * kRun ? (K + kRun - 1) / kRun : 2;
  }
  static constexpr int64_t size(int64_t rows, int64_t K) {
    return rows * 2 * width_for(K) + (rows * 4 * (1 + totals_for(K)) + 63) / 64 * 64;
  }
  Int16Rows(void* memory, int64_t rows, int64_t K)
      : bytes(static_cast<int8_t*>(memory)),
        width(width_for(K)),
        totals(totals_for(K)),
        scale(reinterpret_cast<float*>(bytes + rows * 2 * width)),
        total(reinterpret_cast<int32_t*>(scale + rows)) {}
};

// C (rows x vectors * lanes) = add + A W, for a panel of `vectors` <= 4 vectors of columns, each as
// many 32-bit lanes as the instruction set has.
struct NarrowProduct {
  int64_t rows, K;
  int vectors;
  const int32_t* units;  // groups of consecutive k of a column, see storage.h
  const float* scale;    // (vectors * lanes) of the columns' integers, times 256; 8 bits only
  float* c;
  int64_t ldc;
  const float* add;  // as c; stride 0: one row for all; null: nothing
  int64_t ldadd;
  bool far;  // whether the panel comes from beyond the second-level cache
};

// The kernels of one instruction set; null members where there are none.
template <typename Rows>
struct NarrowKernels {
  // Row `row` of `rows` from a (K). 8 bits: a row that is not finite gets a scale of NaN.
  void (*prepare)(const float* a, int64_t K, const Rows& rows, int64_t row) = nullptr;
  void (*multiply)(const Rows& rows, const NarrowProduct& product) = nullptr;

  explicit operator bool() const { return multiply != nullptr; }
};

// Those for vectors of so many bytes, as far as this CPU has the instructions.
const NarrowKernels<Bf16Rows>& bf16_kernels(int vector_bytes);
const NarrowKernels<Int16Rows>& int8_kernels(int vector_bytes);

// Whether those of bfloat16 are faster than weights that become floats on the way. Intel's CPUs
// take two cycles for vdpbf16ps, in which they do four multiply-adds of floats.
bool bf16_pays();

}  // namespace seq2seq_ext
