#include "sequences.h"

#include <vector>

#include "kernels.h"

namespace seq2seq_ext::cuda {

Sequences sequences_of(const Batch& batch, Runtime& run) {
  const int64_t T = batch.T, B = batch.B;
  Sequences found;
  if (batch.form == Form::kPacked) {
    std::vector<int64_t> length(B);  // of the sequences: a step's size counts those that run
    for (int64_t t = 0; t < T; ++t)
      for (int64_t b = 0; b < batch.batch_sizes[t]; ++b) ++length[b];
    int32_t* on_device = run.take<int32_t>(B);
    check(upload_lengths(length.data(), B, on_device, run.stream()));
    int64_t* offset = run.take<int64_t>(T);
    check(packed_offsets(on_device, B, T, offset, run.stream()));
    found = {on_device, offset};
  } else if (batch.lengths != nullptr) {
    int32_t* on_device = run.take<int32_t>(B);
    check(upload_lengths(batch.lengths, B, on_device, run.stream()));
    found.length = on_device;
  } else {
    found.length = on_device(batch.lengths_on_device, T, run);
  }
  return found;
}

const int32_t* on_device(const View& integers, int64_t most, Runtime& run) {
  if (!integers) return nullptr;
  const auto* given = static_cast<const int64_t*>(integers.data());
  const int64_t count = integers.numel();
  int32_t* const taken = run.take<int32_t>(count);
  if (integers.device.type == aoti_torch_device_type_cpu()) {
    check(upload_lengths(given, count, taken, run.stream()));
  } else {
    check(take_lengths(given, count, most, taken, run.stream()));
  }
  return taken;
}

}  // namespace seq2seq_ext::cuda
