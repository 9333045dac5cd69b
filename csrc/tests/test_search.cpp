// The search on every instruction set of this CPU and teams of several sizes: all must find what
// the baseline finds alone in double. What is right, tests/test_search.py tells; here are the edges
// of vectors and panels, exact arrays, narrow weights, and sanitizers.
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "random.h"
#include "run_kernel.h"

using namespace seq2seq_ext;

namespace {

enum class Way { kNone, kMaxout, kLuong, kBahdanau, kHeads };

struct Case {
  Cell cell;
  Way way;
  int64_t L, M, S, H, V, k, R;

  bool attends() const { return way == Way::kLuong || way == Way::kBahdanau || way == Way::kHeads; }
  bool additive() const { return way == Way::kBahdanau; }
  bool maxout() const { return way == Way::kMaxout || way == Way::kBahdanau; }
  int64_t C() const { return attends() ? 4 : 0; }
  int64_t A() const { return way == Way::kLuong ? H : 6; }
  int64_t O() const { return way == Way::kLuong || way == Way::kHeads ? 5 : 0; }
  int64_t U() const { return maxout() ? 3 : 0; }
  int64_t X() const { return way == Way::kMaxout ? 2 : 0; }
  int64_t F() const { return way == Way::kHeads ? 0 : O() > 0 ? O() : C(); }
};

constexpr int64_t kTokens = 6, kE = 5;

struct Found {
  std::vector<int64_t> lengths, tokens;
  std::vector<double> scores, alignments;
};

// A search's arrays, each of exactly its size: numbers at random, results full of others.
template <typename T>
class Arrays {
 public:
  Arrays(const Case& c, uint64_t seed) : c_(c), random_(seed) {
    const int64_t G = num_gates(c.cell), width = G * c.H, wide = c.V * c.M;
    DecoderWeights<T>& w = call.w;
    w.cell = c.cell;
    w.L = c.L, w.H = c.H, w.V = c.V, w.E = kE, w.X = c.X(), w.F = c.F(), w.A = c.A(), w.C = c.C();
    w.O = c.O(), w.U = c.U(), w.R = c.R;
    w.embedding = given(c.V * kE);
    for (int64_t l = 0; l < c.L; ++l) {
      w_ih_.push_back(given(width * (l == 0 ? kE + c.X() + c.F() : c.H)));
      w_hh_.push_back(given(width * c.H));
      b_ih_.push_back(given(width)), b_hh_.push_back(l == 0 ? given(width) : nullptr);
    }
    w_in_ = w_ih_;
    w_in_[0] = c.F() > 0 ? w_ih_[0] + kE + c.X() : nullptr;
    w.w_ih = w_ih_.data(), w.w_in = w_in_.data(), w.w_hh = w_hh_.data();
    w.b_ih = b_ih_.data(), w.b_hh = b_hh_.data();
    if (c.attends() && c.way != Way::kLuong) w.w_query = given(c.A() * c.H);
    if (c.additive()) w.v = given(c.A()), w.gain = given(1), w.w_coverage = given(c.A());
    if (c.O() > 0) w.w_out = given(c.O() * (c.C() + c.H)), w.b_out = given(c.O());
    if (c.maxout()) {
      w.w_state = given(2 * c.U() * c.H), w.b_state = given(2 * c.U());
      w.w_token = given(2 * c.U() * kE);
      if (c.attends()) w.w_context = given(2 * c.U() * c.C());
    }
    const int64_t features = c.O() > 0 ? c.O() : c.maxout() ? c.U() : c.H;
    if (c.R > 0) w.w_rank = given(c.R * features);
    w.w_vocab = given(c.V * (c.R > 0 ? c.R : features), 4), w.b_vocab = given(c.V);

    call.M = c.M, call.S = c.S, call.heads = c.way == Way::kHeads ? 2 : 1;
    call.residual = c.L > 1 ? 1 : 0;
    call.query_first = c.way == Way::kBahdanau, call.scale = 0.7;
    if (c.X() > 0) call.gates = given(c.M * width);
    if (c.way == Way::kMaxout) call.pieces = given(c.M * 2 * c.U());
    call.h_0 = given(c.L * c.M * c.H);
    if (c.cell == Cell::kLstm) call.c_0 = given(c.L * c.M * c.H);
    if (c.attends()) {
      call.keys = given(c.M * c.S * c.A()), call.values = given(c.M * c.S * c.C());
      for (int64_t m = 0; m < c.M; ++m) source_.push_back(m * 5 % (c.S + 1));
      call.source = source_.data();
    }
    SearchOptions& o = call.options;
    o.beams = c.k, o.returned = (c.k + 1) / 2;
    o.max_tokens = kTokens, o.min_tokens = wide % 3;
    o.pad = 0, o.bos = 2, o.eos = 3;
    o.length_penalty = 0.8, o.wu = wide % 2 == 0;
    o.early_stopping = static_cast<EarlyStopping>(wide % 3);
    o.scores = true, o.alignments = c.attends() && c.S > 0;
    const int64_t rows = c.M * o.returned;
    tokens_.assign(rows * kTokens, -1), lengths_.assign(rows, -1), scores_.assign(rows, 7);
    call.tokens = tokens_.data(), call.lengths = lengths_.data(), call.scores = scores_.data();
    alignments_.assign(o.alignments ? rows * kTokens * c.S : 0, T(7));
    if (o.alignments) call.alignments = alignments_.data();
  }

  Found found() const {
    Found all{lengths_, {}, scores_, {}};
    for (size_t i = 0; i < lengths_.size(); ++i) {
      const auto from = static_cast<int64_t>(i) * kTokens;
      for (int64_t t = from; t < from + lengths_[i]; ++t) {
        all.tokens.push_back(tokens_[t]);
        for (int64_t s = 0; s < c_.S && call.options.alignments; ++s)
          all.alignments.push_back(alignments_[t * c_.S + s]);
      }
    }
    return all;
  }

  PlannedDecoding<Search<T>> call{};

 private:
  const T* given(int64_t count, double scale = 1) {
    std::vector<T> array(count);
    for (T& x : array) x = static_cast<T>(scale * (2 * random_.uniform() - 1));
    given_.push_back(std::move(array));
    return given_.back().data();
  }

  Case c_;
  Random random_;
  std::vector<int64_t> source_, lengths_;
  std::vector<int32_t> tokens_;
  std::vector<double> scores_;
  std::vector<T> alignments_;
  std::vector<const T*> w_ih_, w_in_, w_hh_, b_ih_, b_hh_;
  std::vector<std::vector<T>> given_;  // whose own memory does not move
};

template <typename T>
Found run(const Case& c, uint64_t seed, const Kernels& k, Plan plan, WeightType type) {
  Arrays<T> arrays(c, seed);
  PlannedDecoding<Search<T>>& call = arrays.call;
  call.plan = plan;
  const auto of_type = [](auto f32, auto f64) {
    if constexpr (std::is_same_v<T, float>)
      return f32;
    else
      return f64;
  };
  const Block block(of_type(k.packed_decoder_size_f32, k.packed_decoder_size_f64)(call.w, type));
  of_type(k.pack_decoder_f32, k.pack_decoder_f64)(call.w, type, block.data());
  call.packed = {block.data(), type};
  run_kernel(call, of_type(k.search_workspace_f32, k.search_workspace_f64),
             of_type(k.search_f32, k.search_f64));
  return arrays.found();
}

bool close(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  for (size_t i = 0; i < want.size(); ++i)
    if (got[i] != want[i] && !(std::abs(got[i] - want[i]) <= tolerance)) return false;
  return got.size() == want.size();
}

bool within(const Found& found, const Case& c) {
  for (const int64_t length : found.lengths)
    if (length < 0 || length > kTokens) return false;
  for (const int64_t token : found.tokens)
    if (token < 0 || token >= c.V || token == 0 || token == 2) return false;
  return true;
}

}  // namespace

int main() {
  int checks = 0, failures = 0;
  const auto expect = [&](bool holds, const std::string& what) {
    ++checks;
    failures += !holds;
    if (!holds) std::printf("%s\n", what.c_str());
  };
  std::vector<const Kernels*> tables;
  for (const std::string& isa : available_cpu_isas()) tables.push_back(&kernels_for(isa));
  uint64_t number = 0;
  for (const Cell cell :
       {Cell::kLstm, Cell::kGru, Cell::kGruResetBefore, Cell::kRnnTanh, Cell::kRnnRelu}) {
    for (const Way way : {Way::kNone, Way::kMaxout, Way::kLuong, Way::kBahdanau, Way::kHeads}) {
      for (const int64_t H : {2, 17}) {
        for (const int64_t k : {1, 3}) {
          ++number;
          const auto n = static_cast<int64_t>(number);
          const Case c{cell,
                       way,
                       1 + n % 2,
                       1 + n % 4,
                       n % 5 * 3,
                       H,
                       n % 3 == 0 ? 70 : 9,
                       k,
                       n % 4 == 1 ? 3 : 0};
          const Found want = run<double>(c, number, *tables.front(), {}, WeightType::kFull);
          for (const Kernels* kernels : tables) {
            for (const Plan plan : {Plan{}, Plan{3, Split::kRows}, Plan{3, Split::kUnits}}) {
              const std::string what =
                  std::string(kernels->name) + ", case " + std::to_string(number) + ", threads " +
                  std::to_string(plan.threads) + (plan.split == Split::kUnits ? ", together" : "");
              const Found got = run<double>(c, number, *kernels, plan, WeightType::kFull);
              expect(got.lengths == want.lengths && got.tokens == want.tokens, what + ": tokens");
              expect(close(got.scores, want.scores, 1e-9), what + ": scores");
              expect(close(got.alignments, want.alignments, 1e-9), what + ": alignments");
              for (const WeightType type :
                   {WeightType::kFull, WeightType::kBf16, WeightType::kInt8})
                expect(within(run<float>(c, number, *kernels, plan, type), c), what + ": float");
            }
          }
        }
      }
    }
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
