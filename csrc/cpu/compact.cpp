#include "compact.h"

#include <algorithm>
#include <numeric>

namespace seq2seq_ext {

void CompactArguments::arrange(Scratch::Frame& frame) {
  if (form == Form::kPacked) {
    active = batch_sizes;
  } else {
    int64_t* running = frame.take<int64_t>(T);
    if (lengths == nullptr) {
      std::fill(running, running + T, B);
    } else {
      int64_t* sorted = frame.take<int64_t>(B);
      std::iota(sorted, sorted + B, 0);
      std::sort(sorted, sorted + B, [&](int64_t a, int64_t b) {
        return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b;
      });
      for (int64_t t = 0, b = B; t < T; ++t) {
        while (b > 0 && lengths[sorted[b - 1]] <= t) --b;
        running[t] = b;
      }
      source = sorted;
    }
    active = running;
  }
  int64_t* first = frame.take<int64_t>(T);
  for (int64_t t = 0, r = 0; t < T; ++t) {
    first[t] = r;
    r += active[t];
  }
  offset = first;
  if (source != nullptr) {
    int64_t* at = frame.take<int64_t>(N);
    for (int64_t t = 0, r = 0; t < T; ++t)
      for (int64_t b = 0; b < active[t]; ++b) at[r++] = t * B + source[b];
    row = at;
  }
  if (resets) {
    const auto* given_resets = static_cast<const uint8_t*>(resets.data());
    if (row == nullptr) {
      reset = given_resets;
    } else {
      uint8_t* compact = frame.take<uint8_t>(N);
      for (int64_t r = 0; r < N; ++r) compact[r] = given_resets[row[r]];
      reset = compact;
    }
    if (std::all_of(reset, reset + N, [](uint8_t value) { return value == 0; })) reset = nullptr;
  }
}

}  // namespace seq2seq_ext
