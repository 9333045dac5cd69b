// Numbers for tests: the same in every run.
#pragma once

#include <cstdint>

namespace seq2seq_ext {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint64_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 33;
  }
  double uniform() { return static_cast<double>(next()) / (1ull << 31); }  // [0, 1)

 private:
  uint64_t state_;
};

}  // namespace seq2seq_ext
