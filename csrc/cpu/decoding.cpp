// The operators prepack_decoder and decoder_step on CPU tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <utility>

#include "decoding_arguments.h"
#include "dispatch.h"
#include "packed.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

void prepack_decoder(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const std::vector<Handle> given = read.tensors();
    const int64_t cell = read.integer(), num_layers = read.integer(), features = read.integer();
    const auto dtype = read.optional_dtype();
    const DecoderTensors weights(given, cell, num_layers, features);
    stack[0] = result(pack(weights, weight_type_of(dtype, weights)));
  });
}

// What decoder_step is given behind that, in the order of ops.cpp.
struct StepGiven : DecodingGiven {
  Handle tokens, h, c, feed, coverage, memory;

  explicit StepGiven(ArgumentReader& read)
      : DecodingGiven(read),
        tokens(read.tensor()),
        h(read.tensor()),
        c(read.optional_tensor()),
        feed(read.optional_tensor()),
        coverage(read.optional_tensor()),
        memory(read.optional_tensor()) {}
};

struct StepArguments : DecodingArguments {
  int64_t N;
  View tokens, h, c, feed, coverage, memory;

  explicit StepArguments(const StepGiven& given) : DecodingArguments(given) {
    const DecoderTensors& w = weights;
    const View rows(given.tokens);
    if (rows.dim != 1) fail("tokens: expected shape (N), got ", rows);
    N = rows.size[0];
    if (w.C == 0) M = N;
    tokens = weights.integers("tokens", rows, {{N}, 1}, w.V - 1);
    if ((w.cell == Cell::kLstm) != bool(given.c))
      fail("c: expected a tensor for the cell ", Cell::kLstm, ", and only there");
    if (given.feed && w.F == 0) fail("feed: expected None, as nothing is fed, got a tensor");
    if (given.coverage && !w.has(DecoderRole::kCoverage))
      fail("coverage: expected None without w_coverage, got a tensor");
    h = take("h", given.h, {{w.L, N, w.H}, 3}), c = take("c", given.c, {{w.L, N, w.H}, 3});
    feed = take("feed", given.feed, {{N, w.F}, 2});
    coverage = take("coverage", given.coverage, {{N, S}, 2});
    memory = weights.integers("memory", View(given.memory), {{N}, 1}, M - 1);
    if (!memory && M != N)
      fail("keys: expected ", N, " sources as there are tokens, got ", M,
           "; memory would say which is whose");
    take_rows(N, M);
  }

  template <typename T>
  void fill(DecodingStep<T>& call) const {
    const auto at = [](const View& view) { return static_cast<const T*>(view.data()); };
    const auto integers = [](const View& view) { return static_cast<const int64_t*>(view.data()); };
    DecodingArguments::fill(static_cast<Decoding<T>&>(call));
    call.N = N;
    call.tokens = integers(tokens), call.memory = integers(memory);
    call.h = at(h), call.c = at(c), call.feed = at(feed), call.coverage = at(coverage);
  }
};

struct StepResults {
  Handle logits, h_n, c_n, feed_n, coverage_n, alignments;

  explicit StepResults(const StepArguments& a) {
    const DecoderTensors& w = a.weights;
    const auto make = [&](bool wanted, const Shape& shape) {
      return empty(wanted ? shape : Shape{{0}, 1}, w.dtype);
    };
    logits = make(true, {{a.N, w.V}, 2});
    h_n = make(true, {{w.L, a.N, w.H}, 3});
    c_n = make(w.cell == Cell::kLstm, {{w.L, a.N, w.H}, 3});
    feed_n = make(w.F > 0, {{a.N, w.F}, 2});
    coverage_n = make(w.has(DecoderRole::kCoverage), {{a.N, a.S}, 2});
    alignments = make(w.C > 0, {{a.N, a.S}, 2});
  }

  template <typename T>
  void fill(DecodingStep<T>& call) const {
    call.logits = at<T>(logits), call.h_n = at<T>(h_n), call.c_n = at<T>(c_n);
    call.feed_n = at<T>(feed_n), call.coverage_n = at<T>(coverage_n);
    call.alignments = at<T>(alignments);
  }
  void put(StableIValue* stack) && {
    int64_t i = 0;
    for (Handle* tensor : {&logits, &h_n, &c_n, &feed_n, &coverage_n, &alignments})
      stack[i++] = result(std::move(*tensor));
  }
};

template <typename T, typename Size, typename Kernel>
void run(const StepArguments& a, const StepResults& out, Size size, Kernel kernel) {
  PlannedDecoding<DecodingStep<T>> call{};
  a.fill(call);
  out.fill(call);
  call.packed = a.packed;
  call.plan = a.plan(1, a.N, a.N);
  run_team(call, size, kernel);
}

void decoder_step(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const StepGiven given(read);
    const StepArguments a(given);
    StepResults out(a);
    const Kernels& k = active_kernels();
    if (a.N > 0) {
      if (a.weights.in_float())
        run<float>(a, out, k.step_workspace_f32, k.step_f32);
      else
        run<double>(a, out, k.step_workspace_f64, k.step_f64);
    }
    std::move(out).put(stack);
  });
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("prepack_decoder", &seq2seq_ext::prepack_decoder);
  m.impl("decoder_step", &seq2seq_ext::decoder_step);
}
