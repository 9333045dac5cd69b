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
  } else if (batch.lengths != nullptr || batch.lengths_on_device) {
    int32_t* on_device = run.take<int32_t>(B);
    if (batch.lengths != nullptr) {
      check(upload_lengths(batch.lengths, B, on_device, run.stream()));
    } else {
      check(take_lengths(static_cast<const int64_t*>(batch.lengths_on_device.data()), B, T,
                         on_device, run.stream()));
    }
    found.length = on_device;
  }
  return found;
}

}  // namespace seq2seq_ext::cuda
