#include "sequences.h"

#include <vector>

#include "kernels.h"

namespace seq2seq_ext::cuda {
namespace {

const int32_t* uploaded(const int64_t* numbers, int64_t count, Runtime& run) {
  int32_t* const on_device = run.take<int32_t>(count);
  check(upload_lengths(numbers, count, on_device, run.stream()));
  return on_device;
}

}  // namespace

Sequences sequences_of(const Batch& batch, Runtime& run) {
  const int64_t T = batch.T, B = batch.B;
  Sequences found;
  if (batch.form == Form::kPacked) {
    std::vector<int64_t> length(B);  // of the sequences: a step's size counts those that run
    for (int64_t t = 0; t < T; ++t)
      for (int64_t b = 0; b < batch.batch_sizes[t]; ++b) ++length[b];
    found.length = uploaded(length.data(), B, run);
    int64_t* const offset = run.take<int64_t>(T);
    check(packed_offsets(found.length, B, T, offset, run.stream()));
    found.offset = offset;
  } else if (batch.lengths != nullptr) {
    found.length = uploaded(batch.lengths, B, run);
  } else {
    found.length = on_device(batch.lengths_on_device, T, run);
  }
  return found;
}

const int32_t* on_device(const View& integers, int64_t most, Runtime& run) {
  if (!integers) return nullptr;
  const auto* given = static_cast<const int64_t*>(integers.data());
  const int64_t count = integers.numel();
  if (integers.device.type == aoti_torch_device_type_cpu()) return uploaded(given, count, run);
  int32_t* const taken = run.take<int32_t>(count);
  check(take_lengths(given, count, most, taken, run.stream()));
  return taken;
}

}  // namespace seq2seq_ext::cuda
