// The two loops that limits.cpp times.

// Independent sums: two ports of four or five cycles' latency want 10, and two registers are taken
// by the factor and the summand.
constexpr int kSums = ISA_REGISTERS == 32 ? 24 : 12;

// Returns the operations done; `seed` is unknown to the compiler, so that nothing is left out.
static int64_t multiply_add(int64_t rounds, float seed, float* result) {
  const Vec<float> factor = broadcast(seed), summand = 1.0f - factor;
  Vec<float> sums[kSums];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) sums[i] = factor + static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + summand;
  }
  Vec<float> total{};
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) total += sums[i];
  *result = total[0];
  return rounds * kSums * kLanes<float> * 2;
}

// One pass over `bytes` at `data`, a multiple of 8 vectors. Returns the bytes read.
static int64_t read_all(const char* data, int64_t bytes, int32_t* result) {
  constexpr int kLoads = 8;
  Vec<int32_t> sums[kLoads] = {};
  for (int64_t at = 0; at < bytes; at += kLoads * ISA_VECTOR_BYTES) {
#pragma GCC unroll 8
    for (int i = 0; i < kLoads; ++i) {
      sums[i] += load(reinterpret_cast<const int32_t*>(data + at + i * ISA_VECTOR_BYTES));
    }
  }
  Vec<int32_t> total{};
#pragma GCC unroll 8
  for (int i = 0; i < kLoads; ++i) total += sums[i];
  *result = total[0];
  return bytes;
}
