// Products of 8-bit weights by the dot-product instructions of AVX-512 VNNI, which multiply 64
// pairs of bytes at once: four times what a register of floats holds.
//
// What the weights are multiplied by becomes a 16-bit integer a = 256 high + low of two signed
// bytes, the digits, with one scale for each row: the largest magnitude of the row is 32639. The
// weights' bytes, q + 128, are unsigned, as the instruction wants one side to be. Both digits'
// sums are exact integers,
//   sum of q a = 256 (sum of (q + 128) high - 128 sum of high) + the same with low,
// and become float once, with both scales. Beside the rounding of the weights to 8 bits that of a
// to 16 does not show.
#pragma once

#include <cstdint>

namespace seq2seq_ext {

// Rows in digits. A row is `width` bytes of high digits, then as many of low ones; width is a
// multiple of 64, and digits from K on are 0.
struct Digits {
  int8_t* bytes;  // (rows, 2, width)
  int64_t width;
  float* scale;    // (rows) of the integers
  int32_t* total;  // (rows, 2): 128 times the sums of the high and of the low digits

  static constexpr int64_t kMostK = 1 << 16;  // 255 * 128 * K fits in 31 bits

  static constexpr int64_t width_for(int64_t K) { return (K + 63) / 64 * 64; }
  // Bytes of memory, a multiple of 64, for so many rows.
  static constexpr int64_t size(int64_t rows, int64_t K) {
    return rows * 2 * width_for(K) + (rows * 12 + 63) / 64 * 64;
  }
  // Lays them out in memory of that size.
  Digits(void* memory, int64_t rows, int64_t K)
      : bytes(static_cast<int8_t*>(memory)),
        width(width_for(K)),
        scale(reinterpret_cast<float*>(bytes + rows * 2 * width)),
        total(reinterpret_cast<int32_t*>(scale + rows)) {}
};

// C (rows x vectors * 16) = add + A W, for a panel of `vectors` <= 4 vectors of columns.
struct DigitProduct {
  int64_t rows, K;
  int vectors;
  const int32_t* units;  // (ceil(K / 4), vectors * 16): four consecutive k of a column, q + 128
  const float* scale;    // (vectors * 16) of the columns' integers, times 256
  float* c;
  int64_t ldc;
  const float* add;  // as c; stride 0: one row for all; null: nothing
  int64_t ldadd;
  bool far;  // whether the panel comes from beyond the second-level cache
};

// What does it on this CPU; null members where it has no such instructions.
struct DigitKernels {
  // Row `row` of `digits` from a (K). A row that is not finite gets a scale of NaN.
  void (*make)(const float* a, int64_t K, const Digits& digits, int64_t row) = nullptr;
  void (*multiply)(const Digits& digits, const DigitProduct& product) = nullptr;

  explicit operator bool() const { return multiply != nullptr; }
};
extern const DigitKernels digit_kernels;

}  // namespace seq2seq_ext
