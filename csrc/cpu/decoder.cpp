// The operators attention_decoder and attention_decoder_backward on CPU tensors.

#include "../glue/decoder.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <utility>

#include "dispatch.h"
#include "kernels.h"
#include "plan.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

// Runs a kernel; each of the parts fills its own into the call.
template <typename T, typename Call, typename... Parts>
void run(const DecoderArguments& a, bool backward, size_t (*workspace)(const Planned<Call>&),
         void (*kernel)(const Planned<Call>&, const Member&, void*), const Parts&... parts) {
  if (a.B == 0) return;
  Planned<Call> call{};
  a.fill(call);
  (parts.fill(call), ...);
  const Problem problem{a.cell,
                        backward,
                        std::nullopt,
                        a.T,
                        a.B,
                        a.T * a.B,
                        a.F,
                        a.H,
                        a.H,
                        a.L,
                        1,
                        sizeof(T),
                        active_kernels().vector_bytes,
                        true};
  call.plan = make_plan(problem, static_cast<int>(torch::stable::get_num_threads()));
  run_team(call, workspace, kernel);
}

void attention_decoder(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const DecoderGiven given(read);
    const bool save = read.boolean();
    const DecoderArguments a(given);
    DecoderOutputs out(a, save);
    const Kernels& k = active_kernels();
    if (a.in_float()) {
      run<float>(a, false, k.decoder_forward_workspace_f32, k.decoder_forward_f32, out);
    } else {
      run<double>(a, false, k.decoder_forward_workspace_f64, k.decoder_forward_f64, out);
    }
    std::move(out).put(stack);
  });
}

void attention_decoder_backward(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const DecoderGiven given(read);
    DecoderCotangents d(read);
    DecoderArguments a(given);
    d.check(a);
    DecoderGradients out(a);
    const Kernels& k = active_kernels();
    if (a.in_float()) {
      run<float>(a, true, k.decoder_backward_workspace_f32, k.decoder_backward_f32, d, out);
    } else {
      run<double>(a, true, k.decoder_backward_workspace_f64, k.decoder_backward_f64, d, out);
    }
    std::move(out).put(stack);
  });
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("attention_decoder", &seq2seq_ext::attention_decoder);
  m.impl("attention_decoder_backward", &seq2seq_ext::attention_decoder_backward);
}
