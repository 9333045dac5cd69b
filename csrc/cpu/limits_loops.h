// The two loops that limits.cpp times, for one instruction set: included there once for each, with
// ISA, ISA_VECTOR_BYTES and ISA_REGISTERS defined and the compiler's target set, as in isa.h.

namespace seq2seq_ext {
namespace ISA {

using Floats = float __attribute__((vector_size(ISA_VECTOR_BYTES)));
using Ints = int32_t __attribute__((vector_size(ISA_VECTOR_BYTES)));

// Independent sums: two ports of four or five cycles' latency want 10, and two registers are taken
// by the factor and the summand.
constexpr int kSums = ISA_REGISTERS == 32 ? 24 : 12;

// Returns the operations done; `seed` is unknown to the compiler, so that nothing is left out.
inline int64_t multiply_add(int64_t rounds, float seed, float* result) {
  const Floats factor = seed - Floats{}, summand = 1.0f - factor;
  Floats sums[kSums];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) sums[i] = factor + static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + summand;
  }
  Floats total{};
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) total += sums[i];
  *result = total[0];
  return rounds * kSums * static_cast<int64_t>(ISA_VECTOR_BYTES / sizeof(float)) * 2;
}

// One pass over `bytes` at `data`, a multiple of 8 vectors. Returns the bytes read.
inline int64_t read_all(const char* data, int64_t bytes, int32_t* result) {
  constexpr int kLoads = 8;
  Ints sums[kLoads] = {};
  for (int64_t at = 0; at < bytes; at += kLoads * ISA_VECTOR_BYTES) {
#pragma GCC unroll 8
    for (int i = 0; i < kLoads; ++i) {
      Ints loaded;
      __builtin_memcpy(&loaded, data + at + i * ISA_VECTOR_BYTES, sizeof loaded);
      sums[i] += loaded;
    }
  }
  Ints total{};
#pragma GCC unroll 8
  for (int i = 0; i < kLoads; ++i) total += sums[i];
  *result = total[0];
  return bytes;
}

constexpr Loops loops{multiply_add, read_all};

}  // namespace ISA
}  // namespace seq2seq_ext
