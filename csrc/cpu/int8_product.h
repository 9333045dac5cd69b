// Products of 8-bit weights in integers: AVX-512 VNNI multiplies 64 pairs of bytes at once, AVX2 16
// pairs of 16-bit words, where a register holds 16 or 8 floats.
//
// What the weights are multiplied by is rounded to 16-bit integers a, with one scale for each row:
// the largest magnitude of a row becomes 32639. The weights' bytes, q + 128, are unsigned. Sums are
// exact integers, 128 times the sum of a is taken off again, and both scales are applied once, in
// float. Beside the rounding of the weights to 8 bits that of a to 16 does not show.
#pragma once

#include <cstdint>

namespace seq2seq_ext {

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
  // Bytes of memory, a multiple of 64, for so many rows.
  static constexpr int64_t size(int64_t rows, int64_t K) {
    return rows * 2 * width_for(K) + (rows * 4 * (1 + totals_for(K)) + 63) / 64 * 64;
  }
  // Lays them out in memory of that size.
  Int16Rows(void* memory, int64_t rows, int64_t K)
      : bytes(static_cast<int8_t*>(memory)),
        width(width_for(K)),
        totals(totals_for(K)),
        scale(reinterpret_cast<float*>(bytes + rows * 2 * width)),
        total(reinterpret_cast<int32_t*>(scale + rows)) {}
};

// C (rows x vectors * lanes) = add + A W, for a panel of `vectors` <= 4 vectors of columns, each as
// many 32-bit lanes as the instruction set has.
struct Int8Product {
  int64_t rows, K;
  int vectors;
  const int32_t* units;  // (ceil(K / 4), vectors * lanes): four consecutive k of a column, q + 128
  const float* scale;    // (vectors * lanes) of the columns' integers, times 256
  float* c;
  int64_t ldc;
  const float* add;  // as c; stride 0: one row for all; null: nothing
  int64_t ldadd;
  bool far;  // whether the panel comes from beyond the second-level cache
};

// The kernels of one instruction set; null members where there are none.
struct Int8Kernels {
  // Row `row` of `rows` from a (K). A row that is not finite gets a scale of NaN.
  void (*round)(const float* a, int64_t K, const Int16Rows& rows, int64_t row) = nullptr;
  void (*multiply)(const Int16Rows& rows, const Int8Product& product) = nullptr;

  explicit operator bool() const { return multiply != nullptr; }
};

// Those for vectors of so many bytes, as far as this CPU has the instructions.
const Int8Kernels& int8_kernels(int vector_bytes);

}  // namespace seq2seq_ext
