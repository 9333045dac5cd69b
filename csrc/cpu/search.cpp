// The operator decoder_search on CPU tensors.

#include "../search.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "calls.h"
#include "dispatch.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

constexpr Shape kNothing{{0}, 1};

struct SearchArguments : DecodingArguments {
  View h_0, c_0;
  SearchOptions options;

  explicit SearchArguments(const SearchGiven& given)
      : DecodingArguments(given), options(given.options) {
    const DecoderTensors& w = weights;
    const SearchOptions& o = options;
    check_number("num_beams", o.beams, 1, 1 << 16);
    check_number("num_return_sequences", o.returned, 1, o.beams);
    check_number("max_new_tokens", o.max_tokens, 1, int64_t{1} << 30);
    check_number("min_new_tokens", o.min_tokens, 0, o.max_tokens);
    check_number("pad_token_id", o.pad, 0, w.V - 1);
    check_number("bos_token_id", o.bos, 0, w.V - 1);
    check_number("eos_token_id", o.eos, 0, w.V - 1);
    if (!std::isfinite(o.length_penalty))
      fail("length_penalty: expected a finite number, got ", o.length_penalty);
    if (o.alignments && w.C == 0)
      fail("return_attention: expected False, as the decoder does not attend");
    const View rows(given.h_0);
    if (rows.dim != 3) fail("h_0: expected shape (", w.L, ", M, ", w.H, "), got ", rows);
    if ((w.cell == Cell::kLstm) != bool(given.c_0))
      fail("c_0: expected a tensor for the cell ", Cell::kLstm, ", and only there");
    take_rows(rows.size[1], rows.size[1]);
    check_memory();
    h_0 = take("h_0", given.h_0, {{w.L, M, w.H}, 3});
    c_0 = take("c_0", given.c_0, {{w.L, M, w.H}, 3});
  }

 private:
  // No number of bytes may be too large for an int64.
  void check_memory() const {
    const auto of_row = static_cast<double>(options.max_tokens) * static_cast<double>(S + 2) +
                        static_cast<double>(weights.V);
    if (8 * of_row * static_cast<double>(M) * static_cast<double>(options.beams) > 1e15)
      throw std::bad_alloc();
  }
};

// How many steps a search is expected to take: what it may take is often far more.
constexpr int64_t kExpectedSteps = 16;

template <typename T, typename Size, typename Kernel>
void run(const SearchArguments& a, Size size, Kernel kernel, StableIValue* stack) {
  const SearchOptions& o = a.options;
  const int64_t rows = a.M * o.returned, S = a.S;
  const bool attends = o.alignments && S > 0;
  const int32_t dtype = a.weights.dtype;
  PlannedDecoding<Search<T>> call{};
  a.fill(call);
  call.packed = a.packed;
  call.h_0 = static_cast<const T*>(a.h_0.data()), call.c_0 = static_cast<const T*>(a.c_0.data());
  call.options = o;
  call.options.alignments = attends;
  // Room for the longest that may come: nobody knows how long that is before the end.
  const Handle tokens = empty({{rows, o.max_tokens}, 2}, aoti_torch_dtype_int32());
  const Handle weights = empty(attends ? Shape{{rows, o.max_tokens, S}, 3} : kNothing, dtype);
  Handle lengths = empty({{rows}, 1}, aoti_torch_dtype_int64());
  Handle scores = empty({{rows}, 1}, aoti_torch_dtype_float64());
  call.tokens = static_cast<int32_t*>(data_of(tokens));
  call.lengths = static_cast<int64_t*>(data_of(lengths));
  call.scores = static_cast<double*>(data_of(scores));
  call.alignments = at<T>(weights);
  int64_t longest = 0;
  if (a.M > 0) {
    call.plan = a.plan(std::min(o.max_tokens, kExpectedSteps), a.M * o.beams, a.M);
    run_team(call, size, kernel);
    longest = *std::max_element(call.lengths, call.lengths + rows);
  }
  Handle sequences = empty({{rows, longest}, 2}, aoti_torch_dtype_int64());
  Handle alignments = empty(o.alignments ? Shape{{rows, longest, S}, 3} : kNothing, dtype);
  // To rows of `width`, what lies behind the length being `padding`.
  const auto copy = [&](const auto* from, int64_t width, auto padding, auto* to) {
    for (int64_t i = 0; i < rows; ++i, to += longest * width) {
      const int64_t count = call.lengths[i] * width;
      std::fill(std::copy_n(from + i * o.max_tokens * width, count, to), to + longest * width,
                padding);
    }
  };
  copy(call.tokens, 1, o.pad, static_cast<int64_t*>(data_of(sequences)));
  if (attends) copy(call.alignments, S, T(0), static_cast<T*>(data_of(alignments)));
  stack[0] = result(std::move(sequences));
  stack[1] = result(std::move(lengths));
  stack[2] = result(o.scores ? std::move(scores) : empty(kNothing, aoti_torch_dtype_float64()));
  stack[3] = result(std::move(alignments));
}

void decoder_search(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    run_search(SearchGiven(read), stack);
  });
}

}  // namespace

SearchGiven::SearchGiven(ArgumentReader& read) : DecodingGiven(read) {
  h_0 = read.tensor();
  c_0 = read.optional_tensor();
  take_options(read);
}

SearchGiven::SearchGiven(ArgumentReader& read, WithoutSources) {
  take_weights(read);
  take_layout(read);
  take_options(read);
}

void SearchGiven::take_options(ArgumentReader& read) {
  SearchOptions& o = options;
  o.beams = read.integer(), o.returned = read.integer();
  o.max_tokens = read.integer(), o.min_tokens = read.integer();
  o.pad = read.integer(), o.bos = read.integer(), o.eos = read.integer();
  o.length_penalty = read.number(), o.wu = read.boolean();
  const int64_t early = read.integer();
  check_number("early_stopping", early, 0, 2);
  o.early_stopping = static_cast<EarlyStopping>(early);
  o.scores = read.boolean(), o.alignments = read.boolean();
}

void run_search(const SearchGiven& given, StableIValue* stack) {
  const SearchArguments a(given);
  const Kernels& k = active_kernels();
  if (a.weights.in_float())
    run<float>(a, k.search_workspace_f32, k.search_f32, stack);
  else
    run<double>(a, k.search_workspace_f64, k.search_f64, stack);
}

}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("decoder_search", &seq2seq_ext::decoder_search);
}
