// Greedy and beam search (csrc/search.h). A member of the team carries sources of its own from the
// first token to the last and waits for nobody. All their beams that still run are the rows of a
// step; those of a source lie side by side, best first. Which hypotheses go on, finish and are
// returned is what seq2seq_ext/generation/ tells.

// ---- weights ------------------------------------------------------------------------------------

// What W_x makes of every token, where that is kept: no larger than so many numbers.
inline constexpr int64_t kMostOfTable = int64_t{1} << 22;

// A matrix that multiplies embeddings, or all products with it.
template <typename T>
struct TokenMatrix {
  PackedMatrix<T> w;   // (E, N)
  T* table = nullptr;  // (V, N)
  int64_t N = 0;

  TokenMatrix() = default;
  TokenMatrix(Arena& arena, int64_t V, int64_t E, int64_t N, WeightType type) : N(N) {
    if (V * N <= kMostOfTable) {
      table = arena.take<T>(V * N);
    } else {
      w = PackedMatrix<T>(arena, E, N, type);
    }
  }

  // From `from` (N, ...), rows ld apart.
  void pack(const T* embedding, int64_t V, int64_t E, const T* from, int64_t ld) {
    if (table == nullptr) return w.pack_transpose(from, 0, w.panels(), ld);
    constexpr int64_t W = kLanes<T>;
    for (int64_t token = 0; token < V; ++token)
      for (int64_t n = 0; n < N; n += W)
        store_first(
            table + token * N + n,
            dot_products(std::min(W, N - n), from + n * ld, ld, E, embedding + token * E), N - n);
  }
};

// All weights in the order in which the search reads them, in a block of memory.
template <Cell cell, typename T>
struct PackedDecoder {
  static constexpr int64_t G = num_gates(cell);

  Decoder<T> sizes{};
  DecoderMatrices<cell, T> matrices;
  TokenMatrix<T> x, pieces;
  PackedMatrix<T> w_state, w_context, w_rank, w_vocab;
  T *bias, *b_hn = nullptr, *v = nullptr, *w_coverage = nullptr, *b_out = nullptr;
  T *b_state = nullptr, *b_vocab;

  PackedDecoder(const DecoderWeights<T>& w, WeightType type, Arena& arena)
      : sizes(sizes_of(w)),
        matrices(sizes, arena, false, type),
        x(arena, w.V, w.E, G * w.H, type) {
    const int64_t features = w.w_out ? w.O : w.w_state ? w.U : w.H;
    if (w.w_state) {
      pieces = TokenMatrix<T>(arena, w.V, w.E, 2 * w.U, type);
      w_state = PackedMatrix<T>(arena, w.H, 2 * w.U, type);
      b_state = arena.take<T>(2 * w.U);
    }
    if (w.w_context) w_context = PackedMatrix<T>(arena, w.C, 2 * w.U, type);
    if (w.w_rank) w_rank = PackedMatrix<T>(arena, features, w.R, type);
    w_vocab = PackedMatrix<T>(arena, w.w_rank ? w.R : features, w.V, type);
    bias = arena.take<T>(w.L * G * w.H);
    if (cell == Cell::kGru) b_hn = arena.take<T>(w.L * w.H);
    if (w.v) v = arena.take<T>(w.A);
    if (w.w_coverage) w_coverage = arena.take<T>(w.A);
    if (w.w_out) b_out = arena.take<T>(w.O);
    b_vocab = arena.take<T>(w_vocab.width());
  }

  bool has_tables() const { return x.table && (pieces.table || pieces.N == 0); }
  // Scratch, in elements, for products of so many rows with what no step of `matrices` multiplies.
  int64_t scratch_size(int64_t rows) const {
    int64_t most = 0;
    for (const PackedMatrix<T>* matrix :
         {&x.w, &pieces.w, &w_state, &w_context, &w_rank, &w_vocab})
      most = std::max(most, matrix->scratch_size(rows));
    return most;
  }

  void pack(const DecoderWeights<T>& w) {
    const auto whole = [](PackedMatrix<T>& matrix, const T* from, int64_t ld) {
      if (from != nullptr) matrix.pack_transpose(from, 0, matrix.panels(), ld);
    };
    const auto copy = [](const T* from, int64_t count, T* to) {
      if (from != nullptr) {
        std::copy_n(from, count, to);
      } else if (to != nullptr) {
        std::fill_n(to, count, T(0));
      }
    };
    matrices.each(sizes, whole);
    x.pack(w.embedding, w.V, w.E, w.w_ih[0], w.E + w.X + w.F);
    if (w.w_state) pieces.pack(w.embedding, w.V, w.E, w.w_token, w.E);
    const int64_t features = w.w_out ? w.O : w.w_state ? w.U : w.H;
    whole(w_state, w.w_state, w.H);
    whole(w_context, w.w_context, w.C);
    whole(w_rank, w.w_rank, features);
    whole(w_vocab, w.w_vocab, w.w_rank ? w.R : features);
    for (int64_t l = 0; l < w.L; ++l) {
      for (int64_t i = 0; i < G * w.H; ++i) {
        // n of GRU keeps its two biases apart, everything else adds them up.
        const bool apart = cell == Cell::kGru && i >= 2 * w.H;
        const T state = w.b_hh[l] ? w.b_hh[l][i] : T(0);
        bias[l * G * w.H + i] = (w.b_ih[l] ? w.b_ih[l][i] : T(0)) + (apart ? T(0) : state);
        if (apart) b_hn[l * w.H + i - 2 * w.H] = state;
      }
    }
    copy(w.v, w.A, v);
    if (w.gain) {
      T squares = 0;
      for (int64_t i = 0; i < w.A; ++i) squares += v[i] * v[i];
      const T factor = *w.gain / std::sqrt(squares);
      for (int64_t i = 0; i < w.A; ++i) v[i] *= factor;
    }
    copy(w.w_coverage, w.A, w_coverage);
    copy(w.b_out, w.O, b_out);
    copy(w.b_state, 2 * w.U, b_state);
    copy(w.b_vocab, w.V, b_vocab);
    std::fill(b_vocab + w.V, b_vocab + w_vocab.width(), T(0));
  }

 private:
  static Decoder<T> sizes_of(const DecoderWeights<T>& w) {
    Decoder<T> d{};
    d.cell = w.cell;
    d.L = w.L, d.H = w.H, d.A = w.A, d.C = w.C, d.O = w.O, d.F = w.F;
    d.w_in = w.w_in, d.w_hh = w.w_hh;
    d.ld_feed = w.E + w.X + w.F;
    d.w_query = w.w_query, d.w_out = w.w_out;
    return d;
  }
};

template <Cell cell, typename T>
static size_t packed_decoder_size(const DecoderWeights<T>& w, WeightType type) {
  Arena arena(nullptr);
  PackedDecoder<cell, T>(w, type, arena);
  return arena.used();
}

template <Cell cell, typename T>
static void pack_decoder(const DecoderWeights<T>& w, WeightType type, void* memory) {
  Arena arena(memory);
  PackedDecoder<cell, T>(w, type, arena).pack(w);
}

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

// A member's memory beside that of the decoder's steps. It has at most R rows: k for each of its
// sources.
template <Cell cell, typename T>
struct SearchRows {
  const Search<T>& s;
  const DecoderWeights<T>& w;
  const PackedDecoder<cell, T>& packed;
  const int64_t k, sources, R;
  Planned<DecoderForward<T>> call{};
  Member alone;
  T* x;                            // (R, G*H)
  int64_t *memory, *next_memory;   // (R) the source of a row
  double *score, *next_score;      // (R)
  int32_t *token, *row;            // (max_tokens, R) what rows are fed; their rows a step before
  T* attention;                    // (max_tokens, R, S) alignments, where wanted
  int64_t *begin, *own;            // of the sources that run: (sources + 1) rows, (sources) which
  Finished* finished;              // (sources, k), best first
  int64_t* num_finished;           // (sources)
  Candidate<T>* candidates;        // (2k)
  T *embedded, *pieces, *features, *low, *logits;  // (R, row_stride(...))
  T* scratch;

  SearchRows(const Search<T>& s, const PackedDecoder<cell, T>& packed, int64_t threads,
             Arena& arena)
      : s(s),
        w(s.w),
        packed(packed),
        k(s.options.beams),
        sources(panels_of(s.M, threads)),
        R(sources * k) {
    constexpr int64_t G = num_gates(cell);
    static_cast<Decoder<T>&>(call) = packed.sizes;
    call.T_ = 1, call.B = R, call.S = s.S, call.heads = s.heads, call.residual = s.residual;
    call.additive = w.v != nullptr, call.query_first = s.query_first, call.scale = s.scale;
    call.source = s.source;
    call.bias = packed.bias, call.b_hn = packed.b_hn;
    call.keys = s.keys, call.values = s.values;
    call.v = packed.v, call.w_coverage = packed.w_coverage, call.b_out = packed.b_out;
    call.plan.threads = 1;
    call.x = x = arena.template take<T>(R * G * w.H);
    if (s.keys != nullptr) {
      call.context = arena.template take<T>(R * w.C);
      call.alignments = arena.template take<T>(R * s.heads * s.S);
    }
    if (w.w_out != nullptr) call.attentional = arena.template take<T>(R * w.O);
    call.memory = memory = arena.template take<int64_t>(R);
    next_memory = arena.template take<int64_t>(R);
    score = arena.template take<double>(R), next_score = arena.template take<double>(R);
    const int64_t history = s.options.max_tokens * R;
    token = arena.template take<int32_t>(history), row = arena.template take<int32_t>(history);
    attention = s.options.alignments ? arena.template take<T>(history * s.S) : nullptr;
    begin = arena.template take<int64_t>(sources + 1), own = arena.template take<int64_t>(sources);
    finished = arena.template take<Finished>(R);
    num_finished = arena.template take<int64_t>(sources);
    candidates = arena.template take<Candidate<T>>(2 * k);
    const auto rows = [&](bool wanted, int64_t columns) {
      return wanted ? arena.template take<T>(R * row_stride(columns)) : nullptr;
    };
    embedded = rows(!packed.has_tables(), w.E);
    pieces = rows(w.w_state != nullptr, 2 * w.U);
    features = rows(w.w_state != nullptr, w.U);
    low = rows(w.w_rank != nullptr, w.R);
    logits = rows(true, w.V);
    scratch = arena.template take<T>(packed.scratch_size(R));
  }
  SearchRows(const SearchRows&) = delete;
  SearchRows& operator=(const SearchRows&) = delete;
};

template <Cell cell, typename T>
class Searcher : SearchRows<cell, T>, DecoderForwardSteps<cell, T> {
  using Rows = SearchRows<cell, T>;
  using Steps = DecoderForwardSteps<cell, T>;
  using Rows::s, Rows::w, Rows::packed, Rows::k, Rows::R, Rows::memory, Rows::token, Rows::row;
  using Rows::score, Rows::next_score, Rows::next_memory, Rows::begin, Rows::own, Rows::finished;
  using Rows::num_finished, Rows::logits, Rows::embedded, Rows::pieces;
  using Steps::rows_, Steps::count_, Steps::layers_;
  static constexpr bool kLstm = cell == Cell::kLstm;

 public:
  // The memory is for `threads` members behind each other, of which this takes its own; null: to
  // measure what they need.
  Searcher(const Search<T>& s, const PackedDecoder<cell, T>& packed, const Member* member,
           int64_t threads, char* workspace)
      : Searcher(s, packed, member, threads, workspace, Arena(workspace)) {}

  size_t workspace() const { return used_; }

  void run() {
    start();
    for (int64_t t = 0; count_ > 0; ++t) {
      this->few_ = count_ <= kFewTileRows;
      feed(t);
      this->run_step();
      remember_attention(t);
      write_logits(t);
      choose(t);
    }
    tell();
  }

 private:
  // What rows take along from step to call.
  struct Carried {
    T** array;  // (R, row_stride(width))
    T* spare;   // of the same size
    int64_t width;
  };

  Searcher(const Search<T>& s, const PackedDecoder<cell, T>& packed, const Member* member,
           int64_t threads, char* workspace, Arena&& arena)
      : Rows(s, packed, threads, arena),
        Steps(this->call, member ? &this->alone : nullptr,
              workspace ? workspace + arena.used() : nullptr, &packed.matrices),
        options_(s.options),
        member_(member),
        best_(this->candidates, 2 * k) {
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
    used_ = arena.used() + Steps::workspace();
  }

  int64_t source_of(int64_t i) const { return member_->rank + i * member_->size; }

  void start() {
    for (int64_t j = 0; j < R; ++j) rows_[j] = {{j, 0, j, false}, j};
    for (int64_t i = 0, m; (m = source_of(i)) < s.M; ++i) {
      const int64_t states = s.M * w.H;
      for (int64_t l = 0; l < w.L; ++l) {
        fill_state(s.h_0 + l * states, m, w.H, layers_[l].h + i * row_stride(w.H));
        if (kLstm) fill_state(s.c_0 + l * states, m, w.H, layers_[l].c + i * row_stride(w.H));
      }
      fill_state(s.h_0 + (w.L - 1) * states, m, w.H, this->top_ + i * row_stride(w.H));
      clear_row(this->feed_, i, row_stride(w.F));
      if (w.w_coverage != nullptr) clear_row(this->coverage_, i, row_stride(s.S));
      memory[i] = m, score[i] = 0;
      token[i] = static_cast<int32_t>(options_.bos);
      begin[i] = own[i] = i;
      num_finished[i] = 0;
      running_ = count_ = i + 1;
    }
    begin[running_] = running_;
  }

  // What the cells read of the tokens.
  void feed(int64_t t) {
    const int64_t width = num_gates(cell) * w.H, ld_g = this->ld_g_;
    const T* const table = packed.x.table;
    if (embedded != nullptr)
      for (int64_t j = 0; j < count_; ++j)
        std::copy_n(w.embedding + token[t * R + j] * w.E, w.E, embedded + j * row_stride(w.E));
    if (table == nullptr) product(packed.x.w, embedded, row_stride(w.E), this->gates_, ld_g);
    for (int64_t j = 0; j < count_; ++j)
      add_rows(width, table ? table + token[t * R + j] * width : this->gates_ + j * ld_g,
               row_of(s.gates, memory[j], width), this->x + j * width);
  }

  // The mean of all heads.
  void remember_attention(int64_t t) {
    if (this->attention == nullptr) return;
    for (int64_t j = 0; j < count_; ++j) {
      T* const mean = this->attention + (t * R + j) * s.S;
      const T* const heads = this->call.alignments + j * s.heads * s.S;
      std::copy_n(heads, s.S, mean);
      for (int64_t head = 1; head < s.heads; ++head)
        add_rows(s.S, heads + head * s.S, static_cast<const T*>(mean), mean);
      if (s.heads > 1)
        for (int64_t i = 0; i < s.S; ++i) mean[i] /= static_cast<T>(s.heads);
    }
  }

  void write_logits(int64_t t) {
    const T* features = this->z_;
    int64_t ld = this->ld_h_;
    if (w.w_out != nullptr) {
      features = this->call.attentional, ld = w.O;
    } else if (w.w_state != nullptr) {
      maxout(t);
      features = this->features, ld = row_stride(w.U);
    }
    if (w.w_rank != nullptr) {
      product(packed.w_rank, features, ld, this->low, row_stride(w.R));
      features = this->low, ld = row_stride(w.R);
    }
    product(packed.w_vocab, features, ld, logits, row_stride(w.V), packed.b_vocab, 0);
  }

  void maxout(int64_t t) {
    const int64_t width = 2 * w.U, ld = row_stride(width);
    const T* const table = packed.pieces.table;
    for (int64_t j = 0; j < count_; ++j) {
      T* const to = pieces + j * ld;
      add_rows(width, static_cast<const T*>(packed.b_state), row_of(s.pieces, memory[j], width),
               to);
      if (table) add_rows(width, table + token[t * R + j] * width, static_cast<const T*>(to), to);
    }
    if (!table) product(packed.pieces.w, embedded, row_stride(w.E), pieces, ld, pieces, ld);
    product(packed.w_state, this->z_, this->ld_h_, pieces, ld, pieces, ld);
    if (w.w_context) product(packed.w_context, this->call.context, w.C, pieces, ld, pieces, ld);
    for (int64_t j = 0; j < count_; ++j)
      for (int64_t u = 0; u < w.U; ++u)
        this->features[j * row_stride(w.U) + u] =
            std::max(pieces[j * ld + 2 * u], pieces[j * ld + 2 * u + 1]);
  }

  // c = a times a matrix, plus `add` as in PackedMatrix.
  void product(const PackedMatrix<T>& by, const T* a, int64_t lda, T* c, int64_t ldc,
               const T* add = nullptr, int64_t ldadd = 0) const {
    by.multiply(count_, this->few_, a, lda, c, ldc, this->scratch, {0, by.panels()}, false, add,
                ldadd);
  }

  // ---- which hypotheses go on

  void choose(int64_t t) {
    kept_ = 0;
    int64_t goes_on = 0;
    for (int64_t i = 0, first = 0; i < running_; ++i) {
      const int64_t end = begin[i + 1], before = kept_, source = own[i];
      if (k == 1) {
        follow_best(t, source, first);
      } else {
        follow_beams(t, source, first, end);
      }
      first = end;
      if (kept_ == before) continue;
      own[goes_on] = source;
      begin[++goes_on] = kept_;
    }
    running_ = goes_on;
    if (kept_ > 0) take_along(row + (t + 1) * R);
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
    const double total = score[j] + (options_.scores ? from[best] - sum : T(0));
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
      best_.offer_row(w.V, allowed_logits(t, j), sum, static_cast<T>(score[j]),
                      static_cast<int32_t>(j));
    }
    for (int64_t i = 0; i < std::min(k, best_.count()); ++i)
      if (best_[i].token == options_.eos) finish(source, t, best_[i]);
    const auto first_others = [&](const auto& call) {
      for (int64_t i = 0, others = 0; i < best_.count() && others < k; ++i)
        if (best_[i].token != options_.eos) call(best_[i]), ++others;
    };
    double attainable = -std::numeric_limits<double>::infinity();
    first_others([&](const Candidate<T>& c) {
      attainable = std::max(attainable, attainable_by(c.score, t + 1));
    });
    const Finished* const list = finished + source * k;
    if (num_finished[source] == k && (options_.early_stopping == EarlyStopping::kAtOnce ||
                                      list[k - 1].score >= attainable))
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
    Finished* const list = finished + source * k;
    int64_t& count = num_finished[source];
    if (count == k && !(score > list[k - 1].score)) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && score > list[at - 1].score; --at) list[at] = list[at - 1];
    list[at] = {score, static_cast<int32_t>(t + 1), static_cast<int32_t>(j),
                static_cast<int32_t>(last)};
  }

  void keep(int64_t t, int64_t j, int64_t next, double score) {
    token[(t + 1) * R + kept_] = static_cast<int32_t>(next);
    row[(t + 1) * R + kept_] = static_cast<int32_t>(j);
    next_score[kept_] = score, next_memory[kept_] = memory[j];
    ++kept_;
  }

  // Row j of the next step is what row from[j] was.
  void take_along(const int32_t* from) {
    std::copy_n(next_score, kept_, score);
    std::copy_n(next_memory, kept_, memory);
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
    for (int64_t i = 0, m; (m = source_of(i)) < s.M; ++i) {
      for (int64_t n = 0; n < options_.returned; ++n) {
        const int64_t at = m * options_.returned + n;
        const bool exists = n < num_finished[i];
        const Finished f = exists ? finished[i * k + n] : Finished{};
        s.lengths[at] = f.length;
        s.scores[at] = exists ? f.score : -std::numeric_limits<double>::infinity();
        int32_t next = f.token, j = f.row;
        for (int64_t u = f.length - 1; u >= 0; --u) {
          s.tokens[at * most + u] = next;
          if (this->attention)
            std::copy_n(this->attention + (u * R + j) * s.S, s.S,
                        s.alignments + (at * most + u) * s.S);
          next = token[u * R + j], j = row[u * R + j];
        }
      }
    }
  }

  const SearchOptions& options_;
  const Member* const member_;
  BestCandidates<T> best_;
  std::vector<Carried> carried_;
  size_t used_ = 0;
  int64_t running_ = 0, kept_ = 0;  // sources of the step, rows of the next
};

template <Cell cell, typename T>
static size_t search(const PlannedSearch<T>& f, const Member* member, char* workspace) {
  Arena block(const_cast<void*>(f.packed.memory));
  const PackedDecoder<cell, T> packed(f.w, f.packed.type, block);
  const int64_t threads = f.plan.threads;
  const size_t each = Searcher<cell, T>(f, packed, nullptr, threads, nullptr).workspace();
  if (member != nullptr)
    Searcher<cell, T>(f, packed, member, threads, workspace + member->rank * each).run();
  return threads * each;
}
