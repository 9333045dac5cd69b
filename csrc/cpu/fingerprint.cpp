#include "fingerprint.h"

#include <algorithm>
#include <cstring>

namespace seq2seq_ext {
namespace {

constexpr size_t kUnitBytes = 256;
constexpr int kWords = kUnitBytes / 8;
// Slices that are read side by side. Their units are neighbours, so this much is one run.
constexpr int64_t kGroup = 16;

size_t units_of(size_t bytes) { return (bytes + kUnitBytes - 1) / kUnitBytes; }

// The hash of a slice whose units are u_1 .. u_n, each of kWords words, is the sum over words i of
// o_i * (3^(n-1) u_1[i] + ... + u_n[i]) modulo 2^64, with odd o_i: all factors are odd, so a change
// of one word by d changes the hash by d times an odd number, which is never 0. One shift and two
// additions a word, all words of a unit at once, keep up with the memory.
struct Sums {
  uint64_t word[kWords];

  void add(const void* unit) {
    uint64_t words[kWords];
    std::memcpy(words, unit, kUnitBytes);
    for (int i = 0; i < kWords; ++i) word[i] = 3 * word[i] + words[i];
  }
  uint64_t hash() const {
    uint64_t sum = 0, odd = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < kWords; ++i, odd *= 0x9e3779b97f4a7c15u) sum += word[i] * odd;
    return sum;
  }
};

// Hashes of slices [begin, end) of `slices`.
void hash(const char* array, size_t bytes, int64_t slices, int64_t begin, int64_t end,
          uint64_t* hashes) {
  const auto units = static_cast<int64_t>(units_of(bytes));
  for (; begin < end; begin += kGroup) {
    const int64_t group = std::min(kGroup, end - begin);
    Sums sums[kGroup];
    std::memset(sums, 0, static_cast<size_t>(group) * sizeof(Sums));
    for (int64_t base = begin; base < units; base += slices) {
      for (int64_t s = 0; s < group && base + s < units; ++s) {
        const size_t at = static_cast<size_t>(base + s) * kUnitBytes;
        if (at + kUnitBytes <= bytes) {
          sums[s].add(array + at);
        } else {
          char last[kUnitBytes] = {};
          std::memcpy(last, array + at, bytes - at);
          sums[s].add(last);
        }
      }
    }
    for (int64_t s = 0; s < group; ++s) *hashes++ = sums[s].hash();
  }
}

}  // namespace

int64_t Fingerprint::slices(size_t bytes) {
  return std::min<int64_t>(kSteps, static_cast<int64_t>(units_of(bytes)));
}

void Fingerprint::take(const void* array, size_t bytes, uint64_t* hashes) {
  const int64_t n = slices(bytes);
  hash(static_cast<const char*>(array), bytes, n, 0, n, hashes);
}

bool Fingerprint::unchanged(const void* array, size_t bytes, const uint64_t* hashes, int64_t before,
                            int64_t steps) {
  const int64_t n = slices(bytes);
  if (n == 0) return true;
  // Step s passes the slices from s * n / kSteps to (s + 1) * n / kSteps, both rounded down, or the
  // first of them where it passes none.
  const int64_t start = before % kSteps, end = start + std::min(steps, kSteps);
  const int64_t first = start * n / kSteps;
  const int64_t count = std::clamp<int64_t>(end * n / kSteps - first, 1, n);
  const int64_t before_end = std::min(count, n - first);  // the rest begins with slice 0
  uint64_t found[kSteps];
  const auto* memory = static_cast<const char*>(array);
  hash(memory, bytes, n, first, first + before_end, found);
  hash(memory, bytes, n, 0, count - before_end, found + before_end);
  return std::equal(found, found + before_end, hashes + first) &&
         std::equal(found + before_end, found + count, hashes);
}

}  // namespace seq2seq_ext
