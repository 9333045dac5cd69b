// Greedy and beam search (csrc/search.h). A member of the team carries sources of its own from the
// first token to the last and waits for nobody; or the first carries all of them, and the others
// help with its products (shared_product.h). All their beams that still run are the rows of a
// step; those of a source lie side by side, best first. Which hypotheses go on, finish and are
// returned is what seq2seq_ext/generation/ tells.

// ---- choosing -----------------------------------------------------------------------------------

// The largest of n numbers.
template <typename T>
static T largest(int64_t n, const T* numbers) {
  constexpr int64_t W = kLanes<T>;
  T most = -std::numeric_limits<T>::infinity();
  Vec<T> vector = broadcast(most);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const Vec<T> v = load(numbers + i);
    vector = v > vector ? v : vector;
  }
  for (int64_t lane = 0; lane < W; ++lane) most = std::max(most, vector[lane]);
  for (; i < n; ++i) most = std::max(most, numbers[i]);
  return most;
}

// log(sum(exp)) of n numbers.
template <typename T>
static T log_sum_exp(int64_t n, const T* numbers) {
  constexpr int64_t W = kLanes<T>;
  const T most = largest(n, numbers);
  Vec<T> sums{};
  int64_t i = 0;
  for (; i + W <= n; i += W) sums += exp<T>(load(numbers + i) - most);
  T sum = 0;
  for (int64_t lane = 0; lane < W; ++lane) sum += sums[lane];
  if (i < n) {
    const Vec<T> last = exp<T>(load_first(numbers + i, n - i) - most);
    for (int64_t lane = 0; lane < n - i; ++lane) sum += last[lane];
  }
  return most + std::log(sum);
}

// A token to follow a row.
template <typename T>
struct Candidate {
  T score;
  int32_t row, token;
};

// The best few of what is offered, best first; of equals, what came first.
template <typename T>
class BestCandidates {
 public:
  BestCandidates(Candidate<T>* memory, int64_t most) : memory_(memory), most_(most) {}

  void clear() { count_ = 0; }
  int64_t count() const { return count_; }
  const Candidate<T>& operator[](int64_t i) const { return memory_[i]; }

  // What is to be exceeded.
  T bar() const {
    return count_ < most_ ? -std::numeric_limits<T>::infinity() : memory_[count_ - 1].score;
  }
  void offer(const Candidate<T>& candidate) {
    if (!(candidate.score > bar())) return;
    int64_t at = count_ < most_ ? count_++ : count_ - 1;
    for (; at > 0 && candidate.score > memory_[at - 1].score; --at) memory_[at] = memory_[at - 1];
    memory_[at] = candidate;
  }
  // Of a row all tokens, by their logits - `off` + `score`.
  void offer_row(int64_t n, const T* logits, T off, T score, int32_t row) {
    constexpr int64_t kChunk = 8 * kLanes<T>;
    for (int64_t first = 0; first < n; first += kChunk) {
      const int64_t count = std::min(kChunk, n - first);
      if (!((largest(count, logits + first) - off) + score > bar())) continue;
      for (int64_t i = first; i < first + count; ++i)
        offer({(logits[i] - off) + score, row, static_cast<int32_t>(i)});
    }
  }

 private:
  Candidate<T>* memory_;
  int64_t most_, count_ = 0;
};

// A finished hypothesis: `length` tokens, of which `token` is the last and `row` was fed the one
// before.
struct Finished {
  double score;
  int32_t length, row, token;
};

// ---- search -------------------------------------------------------------------------------------

template <Cell cell, typename T>
class Searcher : DecodingSteps<cell, T> {
  using Base = DecodingSteps<cell, T>;
  using Base::count_, Base::kLstm;
  using Base::w, Base::R, Base::memory, Base::origin, Base::logits, Base::arena_, Base::layers_;

 public:
  // With memory for this member, or none, to measure it. It has at most R rows: k for each of its
  // sources.
  Searcher(const Search<T>& s, const PackedDecoder<cell, T>& packed, const Member* member,
           int64_t threads, char* workspace)
      : Base(s, packed, panels_of(s.M, threads) * s.options.beams, workspace),
        s_(s),
        options_(s.options),
        member_(member),
        k_(options_.beams),
        best_(arena_.template take<Candidate<T>>(2 * k_), 2 * k_) {
    const int64_t sources = panels_of(s.M, threads), history = options_.max_tokens * R;
    score_ = arena_.template take<double>(R), next_score_ = arena_.template take<double>(R);
    next_memory_ = arena_.template take<int64_t>(R);
    token_ = arena_.template take<int32_t>(history), row_ = arena_.template take<int32_t>(history);
    if (options_.alignments) attention_ = arena_.template take<T>(history * s.S);
    begin_ = arena_.template take<int64_t>(sources + 1);
    own_ = arena_.template take<int64_t>(sources);
    finished_ = arena_.template take<Finished>(R);
    num_finished_ = arena_.template take<int64_t>(sources);
    const auto carry = [&](T*& array, int64_t width) {
      carried_.push_back({&array, this->all_rows(width), width});
    };
    for (DecoderLayer<T>& layer : layers_) {
      carry(layer.h, w.H);
      if (kLstm) carry(layer.c, w.H);
    }
    carry(this->top_, w.H);
    if (w.F > 0) carry(this->feed_, w.F);
    if (w.w_coverage != nullptr) carry(this->coverage_, s.S);
  }
  using Base::product_scratch, Base::workspace;

  void run(const Helpers<T>* helpers = nullptr) {
    this->helpers_ = helpers;
    start();
    for (int64_t t = 0; count_ > 0; ++t) {
      this->decode(token_ + t * R, count_);
      for (int64_t j = 0; j < count_ && attention_ != nullptr; ++j)
        this->write_alignments(j, attention_ + (t * R + j) * s_.S);
      choose(t);
    }
    tell();
  }

 private:
  // What rows take along from step to step.
  struct Carried {
    T** array;  // (R, row_stride(width))
    T* spare;   // of the same size
    int64_t width;
  };

  int64_t source_of(int64_t i) const { return member_->rank + i * member_->size; }

  void start() {
    for (int64_t i = 0, m; (m = source_of(i)) < s_.M; ++i) {
      this->begin_row(i, s_.h_0, s_.c_0, s_.M, m);
      clear_row(this->feed_, i, row_stride(w.F));
      if (w.w_coverage != nullptr) clear_row(this->coverage_, i, row_stride(s_.S));
      memory[i] = origin[i] = m, score_[i] = 0;
      token_[i] = static_cast<int32_t>(options_.bos);
      begin_[i] = own_[i] = i;
      num_finished_[i] = 0;
      running_ = count_ = i + 1;
    }
    begin_[running_] = running_;
  }

  // ---- which hypotheses go on

  void choose(int64_t t) {
    kept_ = 0;
    int64_t goes_on = 0;
    for (int64_t i = 0, first = 0; i < running_; ++i) {
      const int64_t end = begin_[i + 1], before = kept_, source = own_[i];
      if (k_ == 1) {
        follow_best(t, source, first);
      } else {
        follow_beams(t, source, first, end);
      }
      first = end;
      if (kept_ == before) continue;
      own_[goes_on] = source;
      begin_[++goes_on] = kept_;
    }
    running_ = goes_on;
    if (kept_ > 0) take_along(row_ + (t + 1) * R);
    count_ = kept_;
  }

  // Rules tokens out that must not come.
  T* allowed_logits(int64_t t, int64_t j) const {
    constexpr T kNever = -std::numeric_limits<T>::infinity();
    T* const from = logits + j * row_stride(w.V);
    from[options_.pad] = from[options_.bos] = kNever;
    if (t < options_.min_tokens) from[options_.eos] = kNever;
    return from;
  }

  T whole(int64_t j) const { return log_sum_exp(w.V, logits + j * row_stride(w.V)); }

  void follow_best(int64_t t, int64_t source, int64_t j) {
    const T sum = options_.scores ? whole(j) : T(0);
    const T* const from = allowed_logits(t, j);
    const T most = largest(w.V, from);
    int64_t best = 0;
    while (best + 1 < w.V && !(from[best] >= most)) ++best;
    const double total = score_[j] + (options_.scores ? from[best] - sum : T(0));
    if (best == options_.eos || t + 1 == options_.max_tokens) {
      finish(source, total, t, j, best);
    } else {
      keep(t, j, best, total);
    }
  }

  void follow_beams(int64_t t, int64_t source, int64_t first, int64_t end) {
    best_.clear();
    for (int64_t j = first; j < end; ++j) {
      const T sum = whole(j);
      best_.offer_row(w.V, allowed_logits(t, j), sum, static_cast<T>(score_[j]),
                      static_cast<int32_t>(j));
    }
    for (int64_t i = 0; i < std::min(k_, best_.count()); ++i)
      if (best_[i].token == options_.eos) finish(source, t, best_[i]);
    const auto first_others = [&](const auto& call) {
      for (int64_t i = 0, others = 0; i < best_.count() && others < k_; ++i)
        if (best_[i].token != options_.eos) call(best_[i]), ++others;
    };
    double attainable = -std::numeric_limits<double>::infinity();
    first_others([&](const Candidate<T>& c) {
      attainable = std::max(attainable, attainable_by(c.score, t + 1));
    });
    const Finished* const list = finished_ + source * k_;
    if (num_finished_[source] == k_ &&
        (options_.early_stopping == EarlyStopping::kAtOnce || list[k_ - 1].score >= attainable))
      return;
    first_others([&](const Candidate<T>& c) {
      if (t + 1 == options_.max_tokens) {
        finish(source, t, c);
      } else {
        keep(t, c.row, c.token, c.score);
      }
    });
  }

  double divisor(int64_t length) const {
    const auto n = static_cast<double>(length);
    return std::pow(options_.wu ? (5 + n) / 6 : n, options_.length_penalty);
  }
  T final_score(T sum, int64_t length) const { return sum / static_cast<T>(divisor(length)); }

  // What a beam of that sum can finish with. Sums only fall, and the divisor is monotone.
  double attainable_by(T sum, int64_t length) const {
    if (options_.early_stopping != EarlyStopping::kNever) return final_score(sum, length);
    return std::max(sum / divisor(length), sum / divisor(options_.max_tokens));
  }

  void finish(int64_t source, int64_t t, const Candidate<T>& c) {
    finish(source, final_score(c.score, t + 1), t, c.row, c.token);
  }
  void finish(int64_t source, double score, int64_t t, int64_t j, int64_t last) {
    Finished* const list = finished_ + source * k_;
    int64_t& count = num_finished_[source];
    if (count == k_ && !(score > list[k_ - 1].score)) return;
    int64_t at = count < k_ ? count++ : k_ - 1;
    for (; at > 0 && score > list[at - 1].score; --at) list[at] = list[at - 1];
    list[at] = {score, static_cast<int32_t>(t + 1), static_cast<int32_t>(j),
                static_cast<int32_t>(last)};
  }

  void keep(int64_t t, int64_t j, int64_t next, double score) {
    token_[(t + 1) * R + kept_] = static_cast<int32_t>(next);
    row_[(t + 1) * R + kept_] = static_cast<int32_t>(j);
    next_score_[kept_] = score, next_memory_[kept_] = memory[j];
    ++kept_;
  }

  // Row j of the next step is what row from[j] was.
  void take_along(const int32_t* from) {
    std::copy_n(next_score_, kept_, score_);
    std::copy_n(next_memory_, kept_, memory);
    std::copy_n(next_memory_, kept_, origin);
    int64_t same = 0;
    while (same < kept_ && from[same] == same) ++same;
    if (same == kept_) return;
    for (const Carried& c : carried_) {
      const int64_t ld = row_stride(c.width);
      for (int64_t j = 0; j < kept_; ++j)
        std::copy_n(*c.array + from[j] * ld, c.width, c.spare + j * ld);
    }
    for (Carried& c : carried_) std::swap(*c.array, c.spare);
  }

  // Writes the results.
  void tell() const {
    const int64_t most = options_.max_tokens;
    for (int64_t i = 0, m; (m = source_of(i)) < s_.M; ++i) {
      for (int64_t n = 0; n < options_.returned; ++n) {
        const int64_t at = m * options_.returned + n;
        const bool exists = n < num_finished_[i];
        const Finished f = exists ? finished_[i * k_ + n] : Finished{};
        s_.lengths[at] = f.length;
        s_.scores[at] = exists ? f.score : -std::numeric_limits<double>::infinity();
        int32_t next = f.token, j = f.row;
        for (int64_t u = f.length - 1; u >= 0; --u) {
          s_.tokens[at * most + u] = next;
          if (attention_)
            std::copy_n(attention_ + (u * R + j) * s_.S, s_.S,
                        s_.alignments + (at * most + u) * s_.S);
          next = token_[u * R + j], j = row_[u * R + j];
        }
      }
    }
  }

  const Search<T>& s_;
  const SearchOptions& options_;
  const Member* const member_;
  const int64_t k_;
  BestCandidates<T> best_;
  std::vector<Carried> carried_;
  double *score_, *next_score_;     // (R)
  int64_t* next_memory_;            // (R)
  int32_t *token_, *row_;           // (max_tokens, R) what rows are fed; their rows a step before
  T* attention_ = nullptr;          // (max_tokens, R, S) alignments, where wanted
  int64_t *begin_, *own_;           // of the sources that run: (sources + 1) rows, which they are
  Finished* finished_;              // (sources, k), best first
  int64_t* num_finished_;           // (sources)
  int64_t running_ = 0, kept_ = 0;  // sources of the step, rows of the next
};

template <Cell cell, typename T>
static size_t search(const PlannedDecoding<Search<T>>& f, const Member* member, char* workspace) {
  Arena block(const_cast<void*>(f.packed.memory));
  const PackedDecoder<cell, T> packed(f.w, f.packed.type, block);
  const int64_t threads = f.plan.threads;
  if (f.plan.split == Split::kUnits && threads > 1) {
    const Searcher<cell, T> size(f, packed, nullptr, 1, nullptr);
    return with_helpers<T>(member, threads, size.product_scratch(), size.workspace(), workspace,
                           [&](const Helpers<T>& helpers, char* memory) {
                             const Member alone;
                             Searcher<cell, T>(f, packed, &alone, 1, memory).run(&helpers);
                           });
  }
  const size_t each = Searcher<cell, T>(f, packed, nullptr, threads, nullptr).workspace();
  if (member != nullptr)
    Searcher<cell, T>(f, packed, member, threads, workspace + member->rank * each).run();
  return threads * each;
}
