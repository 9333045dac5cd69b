// Products of bfloat16 and 8-bit weights (narrow_product.h) against sums in double, at every
// height of a tile, every number of vectors and depths that fill no group, on arrays of exactly
// their size.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/narrow_product.h"

using namespace seq2seq_ext;

namespace {

int checks = 0, failures = 0;

void expect(bool ok, const char* what, int64_t rows, int64_t K, int vectors, double got,
            double wanted) {
  ++checks;
  if (ok) return;
  if (++failures <= 20)
    std::printf("%s, %d rows, K %d, %d vectors: %.9g, expected %.9g\n", what, int(rows), int(K),
                vectors, got, wanted);
}

uint32_t state = 1;
double uniform() {  // [-1, 1)
  state = state * 1664525 + 1013904223;
  return int32_t(state) / 2147483648.0;
}

void check(int vector_bytes, int64_t rows, int64_t K, int vectors, bool add, bool far,
           float magnitude) {
  const NarrowKernels<Int16Rows>& kernels = int8_kernels(vector_bytes);
  const int64_t columns = vectors * vector_bytes / 4, groups = (K + 3) / 4;
  std::vector<float> a(rows * K), scale(columns), c(rows * columns, NAN), before(columns);
  std::vector<int> q(K * columns);
  std::vector<int32_t> units(groups * columns);
  for (float& x : a) x = float(uniform() * magnitude);
  for (float& x : scale) x = float(1.5 + uniform());
  for (float& x : before) x = float(uniform());
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t n = 0; n < columns; ++n) {
      const int value = int(std::lround(uniform() * 127));
      q[k * columns + n] = value;
      units[k / 4 * columns + n] |= int32_t(uint32_t(value + 128) << (8 * (k % 4)));
    }
  }
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(64, size_t(Int16Rows::size(rows, K))), &std::free);
  const Int16Rows integers(memory.get(), rows, K);
  for (int64_t m = 0; m < rows; ++m) kernels.prepare(a.data() + m * K, K, integers, m);
  kernels.multiply(integers, {rows, K, vectors, units.data(), scale.data(), c.data(), columns,
                              add ? before.data() : nullptr, 0, far});
  for (int64_t m = 0; m < rows; ++m) {
    double largest = 0;
    for (int64_t k = 0; k < K; ++k) largest = std::max(largest, std::fabs(double(a[m * K + k])));
    for (int64_t n = 0; n < columns; ++n) {
      double wanted = 0, weight = 0;
      for (int64_t k = 0; k < K; ++k) {
        wanted += double(a[m * K + k]) * q[k * columns + n];
        weight += std::abs(q[k * columns + n]);
      }
      const double factor = scale[n] / 256.0, first = add ? before[n] : 0;
      wanted = first + factor * wanted;
      // Half an integer for each a, and the roundings of the last three operations in float.
      const double bound =
          factor * weight * largest * (0.51 / 32639 + 3e-7) + 1e-6 * std::fabs(first);
      const double got = c[m * columns + n];
      expect(std::fabs(got - wanted) <= bound, "product", rows, K, vectors, got, wanted);
    }
  }
}

// What is zero, too small, or not finite, in the second of three rows.
void check_special(int vector_bytes, float special, double wanted) {
  const NarrowKernels<Int16Rows>& kernels = int8_kernels(vector_bytes);
  const int64_t columns = vector_bytes / 4;
  constexpr int64_t kRows = 3, kK = 21;
  std::vector<float> a(kRows * kK, 0.5f), scale(columns, 256.0f), c(kRows * columns, NAN);
  for (int64_t k = 0; k < kK; ++k) a[kK + k] = k == 20 || special == 0 ? special : 0.0f;
  std::vector<int32_t> units((kK + 3) / 4 * columns, int32_t(0x81818181u));  // q = 1
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(64, size_t(Int16Rows::size(kRows, kK))), &std::free);
  const Int16Rows integers(memory.get(), kRows, kK);
  for (int64_t m = 0; m < kRows; ++m) kernels.prepare(a.data() + m * kK, kK, integers, m);
  kernels.multiply(
      integers, {kRows, kK, 1, units.data(), scale.data(), c.data(), columns, nullptr, 0, false});
  for (int64_t n = 0; n < columns; ++n) {
    const double got = c[columns + n];
    expect(
        std::isnan(wanted) ? std::isnan(got) : std::fabs(got - wanted) <= 1e-5 * std::fabs(wanted),
        "special", kRows, kK, 1, got, wanted);
    for (int64_t m : {0, 2})
      expect(std::fabs(c[m * columns + n] - 10.5) < 1e-4, "its neighbours", kRows, kK, 1,
             c[m * columns + n], 10.5);
  }
}

void check_bf16(int64_t rows, int64_t K, int vectors, bool add, bool far, float magnitude) {
  const NarrowKernels<Bf16Rows>& kernels = bf16_kernels(64);
  const int64_t columns = vectors * 16;
  std::vector<float> a(rows * K), c(rows * columns, NAN), before(columns), w(K * columns);
  std::vector<int32_t> units((K + 1) / 2 * columns);
  for (float& x : a) x = float(uniform() * magnitude);
  for (float& x : before) x = float(uniform());
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t n = 0; n < columns; ++n) {
      const auto value = float(std::lround(uniform() * 127)) / 64;  // 7 bits
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      w[k * columns + n] = value;
      units[k / 2 * columns + n] |= int32_t(k % 2 == 0 ? bits >> 16 : bits);
    }
  }
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(64, size_t(Bf16Rows::size(rows, K))), &std::free);
  const Bf16Rows pairs(memory.get(), rows, K);
  for (int64_t m = 0; m < rows; ++m) kernels.prepare(a.data() + m * K, K, pairs, m);
  kernels.multiply(pairs, {rows, K, vectors, units.data(), nullptr, c.data(), columns,
                           add ? before.data() : nullptr, 0, far});
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) {
      double wanted = add ? before[n] : 0, size = std::fabs(wanted);
      for (int64_t k = 0; k < K; ++k) {
        const double product = double(a[m * K + k]) * w[k * columns + n];
        wanted += product;
        size += std::fabs(product);
      }
      // 16 bits of a, and roundings in float along the way.
      const double got = c[m * columns + n];
      expect(std::fabs(got - wanted) <= size * 1.2e-5, "bfloat16", rows, K, vectors, got, wanted);
    }
  }
}

// What is not finite makes its own row so, and no other.
void check_bf16_special(float special) {
  constexpr int64_t kRows = 3, kK = 21, kColumns = 16;
  std::vector<float> a(kRows * kK, 0.5f), c(kRows * kColumns, NAN);
  a[kK + 20] = special;
  std::vector<int32_t> units((kK + 1) / 2 * kColumns, 0x3f803f80);  // 1 and 1
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(64, size_t(Bf16Rows::size(kRows, kK))), &std::free);
  const Bf16Rows pairs(memory.get(), kRows, kK);
  for (int64_t m = 0; m < kRows; ++m) bf16_kernels(64).prepare(a.data() + m * kK, kK, pairs, m);
  bf16_kernels(64).multiply(
      pairs, {kRows, kK, 1, units.data(), nullptr, c.data(), kColumns, nullptr, 0, false});
  for (int64_t n = 0; n < kColumns; ++n) {
    const double got = c[kColumns + n];
    const bool same = std::isnan(special) ? std::isnan(got) : got == double(special);
    expect(same, "not finite", kRows, kK, 1, got, special);
    for (int64_t m : {0, 2})
      expect(c[m * kColumns + n] == 10.5f, "its neighbours", kRows, kK, 1, c[m * kColumns + n],
             10.5);
  }
}

}  // namespace

int main() {
  for (const int bytes : {32, 64}) {
    if (!int8_kernels(bytes)) {
      std::printf("this CPU has no such instructions for vectors of %d bytes\n", bytes);
      continue;
    }
    for (int64_t rows = 1; rows <= 17; ++rows)
      for (int64_t K : {1, 3, 4, 16, 63, 64, 65, 250, 256, 257, 700})
        for (int vectors = 1; vectors <= 4; ++vectors)
          check(bytes, rows, K, vectors, rows % 2 == 0, K % 2 == 0, rows % 3 == 0 ? 1e6f : 1.0f);
    check(bytes, 1, Int16Rows::kMostK, 1, false, false, 1.0f);
    check(bytes, 2, 1000, 4, true, true, 1e-20f);
    check_special(bytes, 0.0f, 0);
    check_special(bytes, 1e-40f, 0);
    check_special(bytes, -3e38f, -3e38);
    check_special(bytes, std::numeric_limits<float>::infinity(), NAN);
    check_special(bytes, std::numeric_limits<float>::quiet_NaN(), NAN);
  }
  if (bf16_kernels(64)) {
    for (int64_t rows = 1; rows <= 17; ++rows)
      for (int64_t K : {1, 2, 3, 31, 32, 33, 130, 700})
        for (int vectors = 1; vectors <= 4; ++vectors)
          check_bf16(rows, K, vectors, rows % 2 == 0, K % 2 == 0, rows % 3 == 0 ? 1e6f : 1.0f);
    check_bf16_special(std::numeric_limits<float>::infinity());
    check_bf16_special(-std::numeric_limits<float>::infinity());
    check_bf16_special(std::numeric_limits<float>::quiet_NaN());
  } else {
    std::printf("this CPU has no instructions for bfloat16\n");
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
