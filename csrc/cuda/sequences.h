// Where the steps of a call's sequences lie, as the kernels want to know it.
#pragma once

#include <cstdint>

#include "../glue/arguments.h"
#include "runtime.h"

namespace seq2seq_ext::cuda {

struct Sequences {
  const int32_t* length = nullptr;  // (B) on the device, or null: all T
  const int64_t* offset = nullptr;  // (T) the same; packed only: row of step (t, 0)
};

// Lengths on the CPU travel as arguments of a kernel; those on the device stay there.
Sequences sequences_of(const Batch& batch, Runtime& run);

// Checked numbers (Common::integers), likewise, or null for none: those on the device are kept
// within 0 to `most`.
const int32_t* on_device(const View& integers, int64_t most, Runtime& run);

}  // namespace seq2seq_ext::cuda
