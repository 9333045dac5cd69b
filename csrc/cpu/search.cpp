// The operators prepack_decoder and decoder_search on CPU tensors.

#include "../search.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "dispatch.h"
#include "kernels.h"
#include "packed.h"
#include "plan.h"
#include "scratch.h"
#include "search_weights.h"
#include "team_run.h"

namespace seq2seq_ext {
namespace {

constexpr Shape kNothing{{0}, 1};

// What decoder_search is given, in the order of ops.cpp.
struct SearchGiven {
  std::vector<Handle> weights;
  Handle packed;
  int64_t turn, checked;
  Handle h_0, c_0, gates, pieces, keys, values, source_lengths;
  int64_t cell, num_layers, source_features, heads, residual;
  bool query_first;
  double scale;
  SearchOptions options;

  explicit SearchGiven(ArgumentReader& read)
      : weights(read.tensors()),
        packed(read.tensor()),
        turn(read.integer()),
        checked(read.integer()),
        h_0(read.tensor()),
        c_0(read.optional_tensor()),
        gates(read.optional_tensor()),
        pieces(read.optional_tensor()),
        keys(read.optional_tensor()),
        values(read.optional_tensor()),
        source_lengths(read.optional_tensor()),
        cell(read.integer()),
        num_layers(read.integer()),
        source_features(read.integer()),
        heads(read.integer()),
        residual(read.integer()),
        query_first(read.boolean()),
        scale(read.number()) {
    SearchOptions& o = options;
    o.beams = read.integer(), o.returned = read.integer();
    o.max_tokens = read.integer(), o.min_tokens = read.integer();
    o.pad = read.integer(), o.bos = read.integer(), o.eos = read.integer();
    o.length_penalty = read.number(), o.wu = read.boolean();
    const int64_t early = read.integer();
    if (early < 0 || early > 2) fail("early_stopping: expected 0, 1 or 2, got ", early);
    o.early_stopping = static_cast<EarlyStopping>(early);
    o.scores = read.boolean(), o.alignments = read.boolean();
  }
};

struct SearchArguments {
  SearchWeights weights;
  int64_t M, S = 0;
  View h_0, c_0, gates, pieces, keys, values, source_lengths;

  explicit SearchArguments(const SearchGiven& given)
      : weights(given.weights, given.cell, given.num_layers, given.source_features),
        h_0(given.h_0),
        c_0(given.c_0),
        gates(given.gates),
        pieces(given.pieces),
        keys(given.keys),
        values(given.values),
        source_lengths(given.source_lengths) {
    const SearchWeights& w = weights;
    check_options(given);
    if (h_0.dim != 3) fail("h_0: expected shape (", w.L, ", M, ", w.H, "), got ", h_0);
    M = h_0.size[1];
    const bool lstm = w.cell == Cell::kLstm;
    if (lstm != bool(c_0)) fail("c_0: expected a tensor for the cell ", Cell::kLstm, " only");
    if (bool(gates) != (w.X > 0)) fail("gates: expected a tensor where source_features is above 0");
    if (pieces && w.U == 0) fail("pieces: expected None without w_state, got a tensor");
    if (bool(keys) != bool(values) || bool(keys) != bool(source_lengths))
      fail("keys, values, source_lengths: expected all three or none");
    if (keys && keys.dim != 3) fail("keys: expected shape (M, S, A), got ", keys);
    if (keys) S = keys.size[1];
    if (!keys && (w.F > 0 || w.O > 0 || w.has("w_context") || given.options.alignments))
      fail("keys: expected a tensor, as the decoder attends");
    if (keys && w.C == 0) fail("values: expected None, as nothing reads the context");
    if (keys && given.heads > 0 && (w.A % given.heads != 0 || w.C % given.heads != 0))
      fail("heads: expected a divisor of ", w.A, " and of ", w.C, ", got ", given.heads);
    if (w.has("v") && given.heads != 1) fail("heads: expected 1 with v, got ", given.heads);
    const int64_t fed = given.query_first || w.O == 0 ? w.C : w.O;
    if (w.F != 0 && w.F != fed)
      fail("w_ih[0]: expected ", fed, " columns for what is fed, got ", w.F);
    const auto optional = [&](const char* name, View& view, const Shape& shape) {
      if (view) w.check(name, view, shape);
      view = weights.contiguous(view);
    };
    const int64_t G = num_gates(w.cell);
    optional("h_0", h_0, {{w.L, M, w.H}, 3});
    optional("c_0", c_0, {{w.L, M, w.H}, 3});
    optional("gates", gates, {{M, G * w.H}, 2});
    optional("pieces", pieces, {{M, 2 * w.U}, 2});
    optional("keys", keys, {{M, S, w.A}, 3});
    optional("values", values, {{M, S, w.C}, 3});
    check_sources();
  }

  template <typename T>
  void fill(Search<T>& call) const {
    const auto at = [](const View& view) { return static_cast<const T*>(view.data()); };
    call.w = weights.view<T>();
    call.M = M, call.S = S;
    call.gates = at(gates), call.pieces = at(pieces), call.h_0 = at(h_0), call.c_0 = at(c_0);
    call.keys = at(keys), call.values = at(values);
    call.source = static_cast<const int64_t*>(source_lengths.data());
  }

 private:
  void check_options(const SearchGiven& given) const {
    const SearchOptions& o = given.options;
    const SearchWeights& w = weights;
    const auto in = [](const char* name, int64_t value, int64_t low, int64_t high) {
      if (value < low || value > high)
        fail(name, ": expected a number from ", low, " to ", high, ", got ", value);
    };
    constexpr int64_t kMost = int64_t{1} << 30;
    in("turn", given.turn, 0, std::numeric_limits<int64_t>::max());
    in("checked", given.checked, 1, kMost);
    in("heads", given.heads, 1, kMost);
    in("residual", given.residual, 0, w.L - 1);
    in("num_beams", o.beams, 1, 1 << 16);
    in("num_return_sequences", o.returned, 1, o.beams);
    in("max_new_tokens", o.max_tokens, 1, kMost);
    in("min_new_tokens", o.min_tokens, 0, o.max_tokens);
    in("pad_token_id", o.pad, 0, w.V - 1);
    in("bos_token_id", o.bos, 0, w.V - 1);
    in("eos_token_id", o.eos, 0, w.V - 1);
    if (!std::isfinite(o.length_penalty) || !std::isfinite(given.scale))
      fail("length_penalty, scale: expected finite numbers");
  }

  void check_sources() {
    View& lengths = source_lengths;
    if (!lengths) return;
    if (lengths.device.type != aoti_torch_device_type_cpu() ||
        lengths.dtype != aoti_torch_dtype_int64() || lengths.dim != 1 || lengths.size[0] != M)
      fail("source_lengths: expected Long on the CPU of shape (", M, "), got ", lengths);
    lengths = weights.contiguous(lengths);
    const auto* values = static_cast<const int64_t*>(lengths.data());
    for (int64_t m = 0; m < M; ++m)
      if (values[m] < 0 || values[m] > S)
        fail("source_lengths: expected values from 0 to ", S, ", got ", values[m], " at ", m);
  }
};

// How many steps a search is expected to take: what it may take is often far more.
constexpr int64_t kExpectedSteps = 16;

template <typename T>
Plan plan_of(const PlannedSearch<T>& call) {
  const int64_t steps = std::min(call.options.max_tokens, kExpectedSteps);
  const int64_t rows = call.M * call.options.beams;
  const Problem problem{call.w.cell,
                        false,
                        call.packed.type,
                        steps,
                        rows,
                        steps * rows,
                        std::max<int64_t>(call.w.F, 1),
                        call.w.H,
                        call.w.H,
                        call.w.L,
                        1,
                        sizeof(T),
                        active_kernels().vector_bytes,
                        true};
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  return make_plan(problem, static_cast<int>(std::min<int64_t>(threads, call.M)));
}

template <typename T>
void run(const SearchGiven& given, const SearchArguments& a, const PackedBlock& block,
         StableIValue* stack) {
  const SearchOptions& o = given.options;
  const int64_t rows = a.M * o.returned;
  PlannedSearch<T> call{};
  a.fill(call);
  call.heads = given.heads, call.residual = given.residual;
  call.query_first = given.query_first, call.scale = given.scale;
  call.options = o, call.packed = block;
  Handle lengths = empty({{rows}, 1}, aoti_torch_dtype_int64());
  call.lengths = static_cast<int64_t*>(data_of(lengths));
  int64_t longest = 0;
  Handle sequences, alignments;
  // Of the longest that may come, and nobody knows how long that is before the end.
  const bool attends = o.alignments && a.S > 0;
  Handle tokens = empty({{rows, o.max_tokens}, 2}, aoti_torch_dtype_int32());
  Handle scores = empty({{rows}, 1}, aoti_torch_dtype_float64());
  Handle all_alignments = empty(attends ? Shape{{rows, o.max_tokens, a.S}, 3} : kNothing,
                                a.weights.dtype);
  call.tokens = static_cast<int32_t*>(data_of(tokens));
  call.scores = static_cast<double*>(data_of(scores));
  call.alignments = attends ? static_cast<T*>(data_of(all_alignments)) : nullptr;
  call.options.alignments = attends;
  if (a.M > 0) {
    call.plan = plan_of(call);
    const Kernels& k = active_kernels();
    if constexpr (std::is_same_v<T, float>) {
      run_team(call, k.search_workspace_f32, k.search_f32);
    } else {
      run_team(call, k.search_workspace_f64, k.search_f64);
    }
    longest = *std::max_element(call.lengths, call.lengths + rows);
  }
  sequences = empty({{rows, longest}, 2}, aoti_torch_dtype_int64());
  alignments = empty(o.alignments ? Shape{{rows, longest, a.S}, 3} : kNothing, a.weights.dtype);
  auto* to = static_cast<int64_t*>(data_of(sequences));
  for (int64_t i = 0; i < rows; ++i, to += longest) {
    const int64_t n = call.lengths[i];
    std::fill(std::copy_n(call.tokens + i * o.max_tokens, n, to), to + longest, o.pad);
    if (!attends) continue;
    T* const weights = static_cast<T*>(data_of(alignments)) + i * longest * a.S;
    std::fill(std::copy_n(call.alignments + i * o.max_tokens * a.S, n * a.S, weights),
              weights + longest * a.S, T(0));
  }
  stack[0] = result(std::move(sequences));
  stack[1] = result(std::move(lengths));
  stack[2] = result(o.scores ? std::move(scores) : empty(kNothing, aoti_torch_dtype_float64()));
  stack[3] = result(std::move(alignments));
}

void prepack_decoder(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const std::vector<Handle> given = read.tensors();
    const int64_t cell = read.integer(), num_layers = read.integer(), features = read.integer();
    const auto dtype = read.optional_dtype();
    const SearchWeights weights(given, cell, num_layers, features);
    stack[0] = result(pack(weights, weight_type_of(dtype, weights)));
  });
}

void decoder_search(StableIValue* stack, uint64_t, uint64_t) {
  with_readable_errors([&] {
    ArgumentReader read(stack);
    const SearchGiven given(read);
    const SearchArguments a(given);
    const PackedBlock block =
        packed_block(a.weights, View(given.packed), given.turn, given.checked);
    if (a.weights.in_float()) {
      run<float>(given, a, block, stack);
    } else {
      run<double>(given, a, block, stack);
    }
  });
}

}  // namespace
}  // namespace seq2seq_ext

STABLE_TORCH_LIBRARY_IMPL(seq2seq_ext, CPU, m) {
  m.impl("prepack_decoder", &seq2seq_ext::prepack_decoder);
  m.impl("decoder_search", &seq2seq_ext::decoder_search);
}
