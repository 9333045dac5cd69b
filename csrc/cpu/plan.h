// How many threads a call gets and how its work is laid on them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace seq2seq_ext {

struct Problem {
  Cell cell;
  int64_t T, B, N, I, H, P, L, D;
  size_t element_size;
  int vector_bytes;
};

// The fastest layout expected for `problem` on at most `max_threads` threads.
Plan make_plan(const Problem& problem, int max_threads);

}  // namespace seq2seq_ext
