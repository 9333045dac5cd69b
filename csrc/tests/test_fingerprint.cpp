// The fingerprint of an array: what is unchanged passes from any slice on, every change of a word
// shows in the slice that holds it, and a round of slices holds every word.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/fingerprint.h"

using seq2seq_ext::Fingerprint;

namespace {

int failures = 0;

void expect(bool condition, const char* what, size_t bytes) {
  if (condition) return;
  std::printf("FAILED: %s (%zu bytes)\n", what, bytes);
  ++failures;
}

uint64_t state = 88172645463325252u;
uint64_t random_word() {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

void check(size_t bytes) {
  std::vector<unsigned char> array(bytes);
  for (unsigned char& byte : array) byte = static_cast<unsigned char>(random_word());
  const int64_t slices = Fingerprint::slices(bytes);
  std::vector<uint64_t> hashes(static_cast<size_t>(slices));
  Fingerprint::take(array.data(), bytes, hashes.data());
  const auto unchanged = [&](int64_t before, int64_t steps) {
    return Fingerprint::unchanged(array.data(), bytes, hashes.data(), before, steps);
  };
  for (int64_t before : {int64_t{0}, int64_t{3}, int64_t{1023}, int64_t{1} << 40})
    for (int64_t steps : {1, 7, 1024, 100000})
      expect(unchanged(before, steps), "the same array passes", bytes);

  for (int trial = 0; trial < 200 && bytes > 0; ++trial) {
    const size_t at = random_word() % bytes;
    const unsigned char old = array[at];
    array[at] ^= static_cast<unsigned char>(1u << trial % 8);
    const auto start = static_cast<int64_t>(random_word() % 5000);
    expect(!unchanged(start, Fingerprint::kSteps), "a round sees a bit", bytes);
    for (int64_t steps : {1, 3, 50, 1000}) {
      int64_t before = start;
      while (unchanged(before, steps) && before - start < Fingerprint::kSteps) before += steps;
      expect(before - start < Fingerprint::kSteps, "calls of some steps see it in a round", bytes);
    }
    array[at] = old;
  }
  // A change of the whole shows in whatever slice comes first.
  for (unsigned char& byte : array) byte ^= 1;
  for (int64_t step = 0; step < Fingerprint::kSteps; ++step)
    expect(slices == 0 || !unchanged(step, 1), "a change of all shows at every step", bytes);
}

// Equal units at other places, and equal words in them, are other arrays.
void check_order() {
  constexpr size_t kUnits = 3 * Fingerprint::kSteps;
  std::vector<uint64_t> array(kUnits * 32);
  std::vector<uint64_t> hashes(Fingerprint::kSteps);
  for (size_t i = 0; i < array.size(); ++i) array[i] = i / 32;
  array[5] = 77;
  const size_t bytes = array.size() * sizeof array[0];
  Fingerprint::take(array.data(), bytes, hashes.data());
  std::swap(array[5], array[6]);
  expect(!Fingerprint::unchanged(array.data(), bytes, hashes.data(), 0, 1), "words swapped", bytes);
  std::swap(array[5], array[6]);
  for (size_t i = 0; i < 32; ++i) std::swap(array[i], array[i + 32 * Fingerprint::kSteps]);
  expect(!Fingerprint::unchanged(array.data(), bytes, hashes.data(), 0, 1), "units swapped", bytes);
}

}  // namespace

int main() {
  for (size_t bytes : {0u, 1u, 4u, 255u, 256u, 257u, 5000u, 65536u, 65600u, 1000000u}) check(bytes);
  check_order();
  if (failures == 0) std::printf("fingerprint: all well\n");
  return failures != 0;
}
