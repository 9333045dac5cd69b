// The decoder that attends on every instruction set of this CPU and teams of several sizes: all
// must give what the baseline gives alone in double. What is right, tests/test_attention_decoder.py
// tells; here are the edges of vectors and panels, exact arrays, and sanitizers.
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "decoder_case.h"
#include "run_kernel.h"

using namespace seq2seq_ext;

namespace {

template <typename T>
Values results(const DecoderCase& c, uint64_t seed, const Kernels& kernels, int threads) {
  DecoderArrays<T, Planned<DecoderForward<T>>, Planned<DecoderBackward<T>>> arrays(
      c, seed, [](double value) { return static_cast<T>(value); });
  arrays.forward.plan.threads = arrays.backward.plan.threads = threads;
  if constexpr (std::is_same_v<T, float>) {
    run_kernel(arrays.forward, kernels.decoder_forward_workspace_f32, kernels.decoder_forward_f32);
    run_kernel(arrays.backward, kernels.decoder_backward_workspace_f32,
               kernels.decoder_backward_f32);
  } else {
    run_kernel(arrays.forward, kernels.decoder_forward_workspace_f64, kernels.decoder_forward_f64);
    run_kernel(arrays.backward, kernels.decoder_backward_workspace_f64,
               kernels.decoder_backward_f64);
  }
  return arrays.results([](T value) { return static_cast<double>(value); });
}

}  // namespace

int main() {
  int checks = 0, failures = 0;
  std::vector<const Kernels*> tables;
  for (const std::string& isa : available_cpu_isas()) tables.push_back(&kernels_for(isa));
  uint64_t number = 0;
  for (const Cell cell :
       {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh, Cell::kRnnRelu}) {
    for (const Way way : kWays) {
      for (const int64_t H : {1, 7, 16, 33}) {
        for (const int64_t L : {1, 3}) {
          ++number;
          const DecoderCase c{
              cell, way, L, number % 3 == 0 ? 1 : 5, int64_t(number % 4) * 6, H, number % 2 == 0};
          const Values want = results<double>(c, number, *tables.front(), 1);
          for (const Kernels* kernels : tables) {
            for (const int threads : {1, 3}) {
              const std::string what = std::string(kernels->name) + ", case " +
                                       std::to_string(number) + ", threads " +
                                       std::to_string(threads);
              checks += 2;
              failures += !agree(what, results<double>(c, number, *kernels, threads), want, 1e-10);
              failures += !agree(what + ", float", results<float>(c, number, *kernels, threads),
                                 want, 1e-2);
            }
          }
        }
      }
    }
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
