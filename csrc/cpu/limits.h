// What the machine can do at most, for benchmarks to stand beside: fused multiply-adds from
// registers, and reads from a buffer of a given size, in the vectors of the instruction set in use.
#pragma once

#include <cstdint>

namespace seq2seq_ext {

// Float32 operations a second of `threads` threads together, each the best of its chunks within
// `seconds`. A multiply-add is two operations. Throws std::invalid_argument where an argument is
// not above 0.
double measure_fma_peak(int threads, double seconds);

// Bytes a second that `threads` threads together read, each from a buffer of its own, over and over
// in order. Throws std::invalid_argument where an argument is not above 0.
double measure_read_bandwidth(int64_t bytes_per_thread, int threads, double seconds);

}  // namespace seq2seq_ext
