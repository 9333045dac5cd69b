// Steps of a decoder from tokens to scores (csrc/decoding.h), of whatever rows are at hand.

// ---- weights ------------------------------------------------------------------------------------

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
        store_first(table + token * N + n,
                    dot_products(std::min(W, N - n), from + n * ld, ld, E, embedding + token * E),
                    N - n);
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
      : sizes(sizes_of(w)), matrices(sizes, arena, false, type), x(arena, w.V, w.E, G * w.H, type) {
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
    for (const PackedMatrix<T>* matrix : {&x.w, &pieces.w, &w_state, &w_context, &w_rank, &w_vocab})
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

// ---- steps --------------------------------------------------------------------------------------

// What a step of at most R rows reads and writes beside what the decoder's cells carry.
template <Cell cell, typename T>
struct DecodingRows {
  const Decoding<T>& d;
  const DecoderWeights<T>& w;
  const PackedDecoder<cell, T>& packed;
  const int64_t R;
  Planned<DecoderForward<T>> call{};
  Member alone;
  T* x;                                            // (R, G*H)
  int64_t* memory;                                 // (R) the source that a row attends to
  int64_t* origin;                                 // (R) whose gates and pieces are a row's
  T *embedded, *pieces, *features, *low, *logits;  // (R, row_stride(...))
  T* scratch;

  DecodingRows(const Decoding<T>& d, const PackedDecoder<cell, T>& packed, int64_t R, Arena& arena)
      : d(d), w(d.w), packed(packed), R(R) {
    constexpr int64_t G = num_gates(cell);
    static_cast<Decoder<T>&>(call) = packed.sizes;
    call.T_ = 1, call.B = R, call.S = d.S, call.heads = d.heads, call.residual = d.residual;
    call.additive = w.v != nullptr, call.query_first = d.query_first, call.scale = d.scale;
    call.source = d.source;
    call.bias = packed.bias, call.b_hn = packed.b_hn;
    call.keys = d.keys, call.values = d.values;
    call.v = packed.v, call.w_coverage = packed.w_coverage, call.b_out = packed.b_out;
    call.plan.threads = 1;
    call.x = x = arena.template take<T>(R * G * w.H);
    if (w.C > 0) {
      call.context = arena.template take<T>(R * w.C);
      call.alignments = arena.template take<T>(R * d.heads * d.S);
    }
    if (w.w_out != nullptr) call.attentional = arena.template take<T>(R * w.O);
    call.memory = memory = arena.template take<int64_t>(R);
    origin = arena.template take<int64_t>(R);
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
  DecodingRows(const DecodingRows&) = delete;
  DecodingRows& operator=(const DecodingRows&) = delete;
};

template <Cell cell, typename T>
class DecodingSteps : protected DecodingRows<cell, T>, protected DecoderForwardSteps<cell, T> {
  using Rows = DecodingRows<cell, T>;
  using Steps = DecoderForwardSteps<cell, T>;
  using Rows::embedded, Rows::pieces;

 protected:
  using Rows::d, Rows::w, Rows::packed, Rows::R, Rows::memory, Rows::origin, Rows::logits;
  using Steps::arena_, Steps::rows_, Steps::count_, Steps::layers_;
  static constexpr bool kLstm = cell == Cell::kLstm;

  // For at most R rows. No workspace: to measure what it needs.
  DecodingSteps(const Decoding<T>& d, const PackedDecoder<cell, T>& packed, int64_t R,
                char* workspace)
      : DecodingSteps(d, packed, R, workspace, Arena(workspace)) {
    for (int64_t j = 0; j < R && workspace != nullptr; ++j) rows_[j] = {{j, 0, j, false}, j};
  }

  size_t workspace() const { return rows_used_ + Steps::workspace(); }
  // Of whoever forms a product of its rows, in elements.
  int64_t product_scratch() const {
    return std::max(packed.matrices.scratch_size(R), packed.scratch_size(R));
  }

  // Of the first `count` rows, which are fed the tokens.
  void decode(const int32_t* tokens, int64_t count) {
    count_ = count;
    this->few_ = count <= kFewTileRows;
    feed(tokens);
    this->run_step();
    write_logits(tokens);
  }

  // Row j begins with row m of states of `rows` rows.
  void begin_row(int64_t j, const T* h, const T* c, int64_t rows, int64_t m) {
    const int64_t states = rows * w.H, ld = row_stride(w.H);
    for (int64_t l = 0; l < w.L; ++l) {
      fill_state(h + l * states, m, w.H, layers_[l].h + j * ld);
      if (kLstm) fill_state(c + l * states, m, w.H, layers_[l].c + j * ld);
    }
    fill_state(h + (w.L - 1) * states, m, w.H, this->top_ + j * ld);
  }

  // The mean of all heads.
  void write_alignments(int64_t j, T* mean) const {
    const T* const heads = this->call.alignments + j * d.heads * d.S;
    std::copy_n(heads, d.S, mean);
    for (int64_t head = 1; head < d.heads; ++head)
      add_rows(d.S, heads + head * d.S, static_cast<const T*>(mean), mean);
    if (d.heads > 1)
      for (int64_t i = 0; i < d.S; ++i) mean[i] /= static_cast<T>(d.heads);
  }

 private:
  DecodingSteps(const Decoding<T>& d, const PackedDecoder<cell, T>& packed, int64_t R,
                char* workspace, Arena&& arena)
      : Rows(d, packed, R, arena),
        Steps(this->call, workspace ? &this->alone : nullptr,
              workspace ? workspace + arena.used() : nullptr, &packed.matrices),
        rows_used_(arena.used()) {}

  // What the cells read of the tokens.
  void feed(const int32_t* tokens) {
    const int64_t width = num_gates(cell) * w.H, ld_g = this->ld_g_;
    const T* const table = packed.x.table;
    if (embedded != nullptr)
      for (int64_t j = 0; j < count_; ++j)
        std::copy_n(w.embedding + tokens[j] * w.E, w.E, embedded + j * row_stride(w.E));
    if (table == nullptr) product(packed.x.w, embedded, row_stride(w.E), this->gates_, ld_g);
    for (int64_t j = 0; j < count_; ++j)
      add_rows(width, table ? table + tokens[j] * width : this->gates_ + j * ld_g,
               row_of(d.gates, origin[j], width), this->x + j * width);
  }

  void write_logits(const int32_t* tokens) {
    const T* features = this->z_;
    int64_t ld = this->ld_h_;
    if (w.w_out != nullptr) {
      features = this->call.attentional, ld = w.O;
    } else if (w.w_state != nullptr) {
      maxout(tokens);
      features = this->features, ld = row_stride(w.U);
    }
    if (w.w_rank != nullptr) {
      product(packed.w_rank, features, ld, this->low, row_stride(w.R));
      features = this->low, ld = row_stride(w.R);
    }
    product(packed.w_vocab, features, ld, logits, row_stride(w.V), packed.b_vocab, 0);
  }

  void maxout(const int32_t* tokens) {
    const int64_t width = 2 * w.U, ld = row_stride(width);
    const T* const table = packed.pieces.table;
    for (int64_t j = 0; j < count_; ++j) {
      T* const to = pieces + j * ld;
      add_rows(width, static_cast<const T*>(packed.b_state), row_of(d.pieces, origin[j], width),
               to);
      if (table) add_rows(width, table + tokens[j] * width, static_cast<const T*>(to), to);
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
    this->form({&by, count_, this->few_, a, lda, c, ldc, this->turned_, add, ldadd}, this->scratch);
  }

  const size_t rows_used_;
};

// ---- one step -----------------------------------------------------------------------------------

// The rows of a member, side by side.
template <Cell cell, typename T>
class StepDecoder : DecodingSteps<cell, T> {
  using Base = DecodingSteps<cell, T>;
  using Base::w, Base::R, Base::memory, Base::origin, Base::arena_, Base::layers_, Base::kLstm;

 public:
  StepDecoder(const DecodingStep<T>& s, const PackedDecoder<cell, T>& packed, int64_t threads,
              char* workspace)
      : Base(s, packed, panels_of(s.N, threads), workspace), s_(s) {
    tokens_ = arena_.template take<int32_t>(R);
  }
  using Base::product_scratch, Base::workspace;

  void run(Member::Range rows, const Helpers<T>* helpers = nullptr) {
    this->helpers_ = helpers;
    const int64_t count = rows.end - rows.begin, H = w.H;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t n = rows.begin + j;
      tokens_[j] = static_cast<int32_t>(s_.tokens[n]);
      memory[j] = s_.memory ? s_.memory[n] : n;
      origin[j] = n;
      this->begin_row(j, s_.h, s_.c, s_.N, n);
      if (w.F > 0) fill_state(s_.feed, n, w.F, this->feed_ + j * row_stride(w.F));
      if (w.w_coverage) fill_state(s_.coverage, n, s_.S, this->coverage_ + j * row_stride(s_.S));
    }
    if (count > 0) this->decode(tokens_, count);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t n = rows.begin + j;
      std::copy_n(this->logits + j * row_stride(w.V), w.V, s_.logits + n * w.V);
      for (int64_t l = 0; l < w.L; ++l) {
        const int64_t from = j * row_stride(H), to = (l * s_.N + n) * H;
        std::copy_n(layers_[l].h + from, H, s_.h_n + to);
        if (kLstm) std::copy_n(layers_[l].c + from, H, s_.c_n + to);
      }
      if (w.F > 0) std::copy_n(this->feed_ + j * row_stride(w.F), w.F, s_.feed_n + n * w.F);
      if (w.w_coverage)
        std::copy_n(this->coverage_ + j * row_stride(s_.S), s_.S, s_.coverage_n + n * s_.S);
      if (w.C > 0) this->write_alignments(j, s_.alignments + n * s_.S);
    }
  }

 private:
  const DecodingStep<T>& s_;
  int32_t* tokens_;
};

template <Cell cell, typename T>
static size_t decode_step(const PlannedDecoding<DecodingStep<T>>& f, const Member* member,
                          char* workspace) {
  Arena block(const_cast<void*>(f.packed.memory));
  const PackedDecoder<cell, T> packed(f.w, f.packed.type, block);
  const int64_t threads = f.plan.threads;
  if (f.plan.split == Split::kUnits && threads > 1) {
    const StepDecoder<cell, T> size(f, packed, 1, nullptr);
    return with_helpers<T>(member, threads, size.product_scratch(), size.workspace(), workspace,
                           [&](const Helpers<T>& helpers, char* memory) {
                             StepDecoder<cell, T>(f, packed, 1, memory).run({0, f.N}, &helpers);
                           });
  }
  const size_t each = StepDecoder<cell, T>(f, packed, threads, nullptr).workspace();
  if (member != nullptr)
    StepDecoder<cell, T>(f, packed, threads, workspace + member->rank * each)
        .run(member->share(f.N));
  return threads * each;
}
