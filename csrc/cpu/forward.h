// Forward: for each layer and direction the input projection of a chunk of steps, large enough to
// be a good matrix product and small enough to stay in cache, then the recurrence over those steps.
// A member computes the projection of exactly what it consumes itself, so the two need no
// barrier between them; with split units there is one a step, else none.

template <Cell cell, typename T, typename S>
class LayerForward {
  using P_ = Panel<cell>;
  using Weights_ = Panels<cell, T, S>;
  static constexpr int64_t W = kLanes<T>;
  static constexpr int64_t kUnits = Weights_::kUnits;
  static constexpr int64_t kColumns = Weights_::kColumns;
  static constexpr bool kTwoPhases = Weights_::kTwoPhases;

 public:
  // Buffers of one direction, shared by its members except for the per-rank scratch.
  LayerForward(const Forward<T>& f, Arena& arena, int64_t max_input)
      : f_(f),
        s_(f.sequence),
        H_(f.H),
        Hp_(padded_units(f.H)),
        P_size_(f.P),
        projected_(f.weights[0].w_hr != nullptr),
        few_(f.sequence.B <= kFewTileRows),
        split_units_(f.plan.split == Split::kUnits),
        own_(f, arena, f.packed ? 0 : max_input),
        weights_(own_),
        ldh_((projected_ ? own_.state_count() * kPlainColumns<T> : own_.count() * kUnits) +
             kUnitPadding),
        ldu_(own_.count() * kUnits + kUnitPadding) {
    const int64_t members = f.plan.threads;
    h_[0] = arena.take<T>(s_.B * ldh_);
    h_[1] = arena.take<T>(s_.B * ldh_);
    if (cell == Cell::kLstm) c_ = arena.take<T>(s_.B * ldu_);
    if (projected_ || kTwoPhases) inner_ = arena.take<T>(s_.B * ldu_);
    if (projected_) out_ = arena.take<T>(s_.B * own_.state_count() * kPlainColumns<T>);
    chunk_rows_ = chunk_rows();
    const int64_t panels = split_units_ ? panels_of(own_.count(), smallest_group(f)) : own_.count();
    gates_stride_ = chunk_rows_ * (panels * kColumns + kUnitPadding);
    gates_ = arena.take<T>(members * gates_stride_);
    scratch_size_ = own_.scratch_size(s_.B);
    scratch_ = arena.take<T>(members * scratch_size_);
    features_ = arena.take<const T*>(members * chunk_rows_);
    factors_ = arena.take<const T*>(members * chunk_rows_);
    rows_ = arena.take<Row>(members * s_.B);
  }

  // Where layers run on different threads, `below` counts the steps that the layer below has done,
  // and `done` those of this one; else they are null.
  void run(int64_t l, int64_t d, LayerInput<T> input, Rows<T> y, T* reserve, const Member& member,
           Signal* below = nullptr, Signal* done = nullptr) {
    const int64_t index = l * f_.D + d;
    const Weights<const T>& w = f_.weights[index];
    const Walk walk(s_, d == 1);
    const OwnRows own(f_.plan, member);
    y_ = y;
    y_.base += d * P_size_;
    if (input.is_gates) input.rows.base += d * own_.count() * kColumns;
    reserve_ = reserve ? reserve + index * s_.N * reserve_slots(cell) * Hp_ : nullptr;
    h_n_ = f_.h_n + index * s_.B * P_size_;
    c_n_ = cell == Cell::kLstm ? f_.c_n + index * s_.B * H_ : nullptr;

    w_ = &w;
    const auto panels = member.share(own_.count());
    const auto states = member.share(own_.state_count());
    if (f_.packed) {
      weights_ = packed_layer<cell, T, S>(f_, const_cast<void*>(f_.packed), index);
      pack_input_ = pack_state_ = true;
    } else if constexpr (std::is_same_v<S, T>) {
      pack_input_ = input.mask || packing_pays(s_.N, input.size);
      pack_state_ = packing_pays(s_.N, P_size_);
      weights_.set_input(input.size);
      weights_.pack(w, panels.begin, panels.end, pack_input_, pack_state_);
      if (projected_ && pack_state_) weights_.pack_projection(w, states.begin, states.end);
    }
    start(walk, f_.h_0 ? f_.h_0 + index * s_.B * P_size_ : nullptr,
          cell == Cell::kLstm && f_.c_0 ? f_.c_0 + index * s_.B * H_ : nullptr, member);
    member.sync();

    // From here on units of `panels` and rows `own` are this member's.
    const Work work{own,
                    walk,
                    member,
                    split_units_ ? panels : Member::Range{0, own_.count()},
                    split_units_ ? states : Member::Range{0, own_.state_count()},
                    gates_ + member.rank * gates_stride_,
                    rows_ + member.rank * s_.B,
                    scratch_ + member.rank * scratch_size_};
    int current = 0;
    for (int64_t step = 0; step < s_.T;) {
      const int64_t end = project(work, input, step, below);
      T* gates = work.gates;
      for (; step < end; ++step) {
        const int64_t t = walk.time(step);
        const int64_t rows = own.count(s_.active[t]);
        find_rows(work, t, rows, h_[1 - current]);
        advance(work, rows, gates, h_[current], step % 2 != 0);
        gates += rows * columns(work);
        current = 1 - current;
        if (split_units_) member.sync();
      }
      if (done) done->set(static_cast<uint32_t>(step));
    }
  }

 private:
  static constexpr int64_t kWaves = 12;

  // One row at one step, as the gate mathematics sees it: where its vectors of units lie.
  struct Row {
    int64_t b;
    T* y;
    T* h_next;
    T* h_n;  // null but at the end of its sequence, as c_n
    T* c_n;
    T* reserve;         // null where nothing is kept
    bool reset_behind;  // the next step starts afresh
  };

  struct Work {
    OwnRows own;
    const Walk& walk;
    const Member& member;
    Member::Range panels;  // of hidden units
    Member::Range states;  // plain panels of projected outputs
    T* gates;              // the chunk: rows in order of reading, (row, panel, slot, unit)
    Row* rows;             // of the step at hand
    T* scratch;
  };

  static int64_t columns(const Work& work) {
    return (work.panels.end - work.panels.begin) * kColumns + kUnitPadding;
  }

  // Rows of a chunk: about half a megabyte of gates, but never less than one step, nor so few that
  // the projection re-reads its weights too often.
  int64_t chunk_rows() const {
    const int64_t row_bytes =
        own_.count() * kColumns * int64_t(sizeof(T)) / (split_units_ ? smallest_group(f_) : 1);
    const int64_t wanted =
        std::max<int64_t>(2 * kBlockRows, (int64_t{1} << 19) / std::max<int64_t>(row_bytes, 1));
    // A layer on another thread waits for whole chunks.
    const int64_t most = f_.plan.split == Split::kLayers ? panels_of(s_.N, kWaves) : s_.N;
    return std::max(s_.B, std::min(most, wanted));
  }

  // The initial states into the working ones. Rows without a step keep theirs as the final ones.
  void start(const Walk& walk, const T* h_0, const T* c_0, const Member& member) {
    const auto put = [](const T* from, int64_t count, T* to) {
      if (from) {
        std::copy(from, from + count, to);
      } else {
        std::fill(to, to + count, T(0));
      }
    };
    const auto share = member.share(s_.B);
    for (int64_t b = share.begin; b < share.end; ++b) {
      const int64_t source = walk.source(b);
      const T* h = h_0 ? h_0 + source * P_size_ : nullptr;
      const T* c = c_0 ? c_0 + source * H_ : nullptr;
      const bool runs = s_.T > 0 && b < s_.active[0];
      if (!runs) {
        put(h, P_size_, h_n_ + source * P_size_);
        if (c_n_) put(c, H_, c_n_ + source * H_);
        continue;
      }
      const bool reset = s_.reset && walk.resets(s_.offset[walk.first_time(b)] + b);
      for (T* state : {h_[0] + b * ldh_, h_[1] + b * ldh_}) {
        std::fill(state, state + ldh_, T(0));
        if (h && !reset) std::copy(h, h + P_size_, state);
      }
      if (c_) {
        std::fill(c_ + b * ldu_, c_ + (b + 1) * ldu_, T(0));
        if (c && !reset) std::copy(c, c + H_, c_ + b * ldu_);
      }
      if (inner_) std::fill(inner_ + b * ldu_, inner_ + (b + 1) * ldu_, T(0));
    }
  }

  // The input's part of the gates, biases included, for as many steps from `step` on as fit in a
  // chunk. Returns the step behind the last.
  int64_t project(const Work& work, const LayerInput<T>& input, int64_t step, Signal* below) {
    const T** features = features_ + work.member.rank * chunk_rows_;
    const T** factors = factors_ + work.member.rank * chunk_rows_;
    int64_t M = 0;
    for (; step < s_.T; ++step) {
      const int64_t t = work.walk.time(step);
      const int64_t count = work.own.count(s_.active[t]);
      if (M + count > chunk_rows_) break;
      for (int64_t j = 0; j < count; ++j, ++M) {
        const int64_t r = s_.offset[t] + work.own.first + j * work.own.step;
        features[M] = input.rows(r);
        if (input.mask) factors[M] = input.mask(r);
      }
    }
    const int64_t ld = columns(work);
    if (work.panels.begin == work.panels.end) return step;
    if (below) below->await(static_cast<uint32_t>(step), work.member.barriers->patience);
    if (input.is_gates) {
      const int64_t first = work.panels.begin * kColumns, count = ld - kUnitPadding;
      for (int64_t m = 0; m < M; ++m) std::copy_n(features[m] + first, count, work.gates + m * ld);
      return step;
    }
    if (pack_input_) {
      weights_.project({M, 0, 0, features, input.mask ? factors : nullptr, nullptr, 0, work.gates,
                        ld, 0, nullptr, 0, work.scratch},
                       work.panels.begin, work.panels.end);
      return step;
    }
    weights_.start_state_slot(M, work.gates, ld, work.panels.begin, work.panels.end);
    for (int64_t p = work.panels.begin; p < work.panels.end; ++p) {
      const int64_t column = (p - work.panels.begin) * kColumns;
      for (int64_t m = 0; m < M; ++m) {
        dot_panel(w_->w_ih, input.size, p, 0, P_::kInputSlots, features[m], weights_.bias(p),
                  work.gates + m * ld + column);
      }
    }
    return step;
  }

  // tile = add + the product of row `a` with slots [slot, end) of panel p, weights unpacked. Both
  // point at the panel's first slot.
  void dot_panel(const T* w, int64_t K, int64_t p, int slot, int end, const T* a, const T* add,
                 T* tile) const {
    for (; slot < end; ++slot) {
      for (int64_t v = 0; v < P_::kUnitVectors; ++v) {
        const int64_t unit = p * kUnits + v * W;
        const int64_t count = std::clamp<int64_t>(H_ - unit, 0, W);
        const int64_t at = slot * kUnits + v * W;
        const T* matrix_rows = w + (P_::kGate[slot] * H_ + (count > 0 ? unit : 0)) * K;
        store(tile + at, load(add + at) + dot_products(count, matrix_rows, K, K, a));
      }
    }
  }

  // Adds the product of unpacked recurrent weights to slots [slot, end) of panel p.
  void dot_rows(const Work& work, int64_t p, int slot, int end, int64_t rows, const T* a,
                int64_t lda, T* tile, int64_t ld) const {
    for (int64_t j = 0; j < rows; ++j) {
      dot_panel(w_->w_hh, P_size_, p, slot, end, a + (work.own.first + j * work.own.step) * lda,
                tile + j * ld, tile + j * ld);
    }
  }

  // Looks up once a step what every panel of it needs.
  void find_rows(const Work& work, int64_t t, int64_t rows, T* h_next) const {
    for (int64_t j = 0; j < rows; ++j) {
      const int64_t b = work.own.first + j * work.own.step;
      const int64_t r = s_.offset[t] + b;
      const bool last = !work.walk.has_next(t, b);
      Row& row = work.rows[j];
      row.b = b;
      row.y = y_(r);
      row.h_next = h_next + b * ldh_;
      row.h_n = last ? h_n_ + work.walk.source(b) * P_size_ : nullptr;
      row.c_n = last && c_n_ ? c_n_ + work.walk.source(b) * H_ : nullptr;
      row.reserve = reserve_ ? reserve_ + r * reserve_slots(cell) * Hp_ : nullptr;
      row.reset_behind = s_.reset && !last && work.walk.resets(work.walk.next(t, b));
    }
  }

  ISA_INLINE void put_h(const Row& row, int64_t unit, Vec<T> h) const {
    store(row.h_next + unit, row.reset_behind ? Vec<T>{} : h);
    const int64_t count = P_size_ - unit;
    if (count <= 0) return;
    store_first(row.y + unit, h, count);
    if (row.h_n) store_first(row.h_n + unit, h, count);
  }

  ISA_INLINE void keep(const Row& row, int slot, int64_t unit, Vec<T> value) const {
    if (row.reserve) store(row.reserve + slot * Hp_ + unit, value);
  }

  // All rows of one step: the recurrent product of a panel, then its gates. Where `turned`, panels
  // are gone through from the last on: a cache that holds a part of them has the right one then.
  void advance(const Work& work, int64_t rows, T* gates, const T* h, bool turned) const {
    if (rows == 0 && !split_units_) return;
    const int64_t ld = columns(work);
    const int64_t first = work.own.first, step = work.own.step;
    const auto operand = [&](const T* a, int64_t lda, int64_t K) {
      return Operand<T, S>(rows, few_, a + first * lda, step * lda, K, work.scratch);
    };
    const auto state = operand(h, ldh_, P_size_);
    for (int64_t i = work.panels.begin; i < work.panels.end; ++i) {
      const int64_t p = turned ? work.panels.begin + work.panels.end - 1 - i : i;
      T* tile = gates + (p - work.panels.begin) * kColumns;
      if (pack_state_) {
        weights_.recur(p, state, tile, ld);
      } else {
        dot_rows(work, p, P_::kStateSlot, P_::kStateSlot + P_::kStateSlots, rows, h, ldh_, tile,
                 ld);
      }
      for (int64_t j = 0; j < rows; ++j) {
        for (int64_t v = 0; v < P_::kUnitVectors; ++v) {
          const int64_t unit = p * kUnits + v * W;
          if (unit < Hp_) gate(work.rows[j], unit, tile + j * ld + v * W, h);
        }
      }
    }
    if constexpr (kTwoPhases) {
      if (split_units_) work.member.sync();
      const auto reset = operand(inner_, ldu_, P_size_);
      for (int64_t p = work.panels.begin; p < work.panels.end; ++p) {
        T* tile = gates + (p - work.panels.begin) * kColumns;
        if (pack_state_) {
          weights_.recur_candidate(p, reset, tile, ld);
        } else {
          dot_rows(work, p, 0, 1, rows, inner_, ldu_, tile, ld);
        }
        for (int64_t j = 0; j < rows; ++j) {
          const Row& row = work.rows[j];
          const int64_t unit = p * kUnits;
          const Vec<T> n = tanh<T>(load(tile + j * ld));
          const Vec<T> z = load(tile + j * ld + 2 * kUnits);
          keep(row, 2, unit, n);
          put_h(row, unit, n + z * (load(h + row.b * ldh_ + unit) - n));
        }
      }
    }
    if (projected_) {
      if (split_units_) work.member.sync();
      const int64_t ldo = own_.state_count() * kPlainColumns<T>;
      const auto hidden = operand(inner_, ldu_, H_);
      for (int64_t q = work.states.begin; q < work.states.end; ++q) {
        const int64_t column = q * kPlainColumns<T>;
        T* out = out_ + first * ldo + column;
        const T* in = inner_ + first * ldu_;
        if (pack_state_) {
          weights_.project_state(q, hidden, out, step * ldo);
        }
        for (int64_t i = 0; i < rows * kPlainVectors && !pack_state_; ++i) {
          const int64_t j = i / kPlainVectors * step, v = i % kPlainVectors * W;
          const int64_t count = std::clamp<int64_t>(P_size_ - column - v, 0, W);
          const T* matrix_rows = w_->w_hr + (count > 0 ? column + v : 0) * H_;
          store(out + j * ldo + v, dot_products(count, matrix_rows, H_, H_, in + j * ldu_));
        }
        for (int64_t j = 0; j < rows; ++j) {
          for (int64_t v = 0; v < kPlainVectors; ++v)
            put_h(work.rows[j], column + v * W, load(out + j * step * ldo + v * W));
        }
      }
    }
  }

  // The gate mathematics of one vector of units; `g` is its place in the panel's first slot.
  ISA_INLINE void gate(const Row& row, int64_t unit, T* g, const T* h) const {
    if constexpr (cell == Cell::kLstm) {
      // c' = f c + i g,  h' = o tanh(c')
      const Vec<T> i = sigmoid<T>(load(g)), f = sigmoid<T>(load(g + kUnits));
      const Vec<T> candidate = tanh<T>(load(g + 2 * kUnits)), o = sigmoid<T>(load(g + 3 * kUnits));
      T* state = c_ + row.b * ldu_ + unit;
      const Vec<T> c = f * load(state) + i * candidate;
      store(state, row.reset_behind ? Vec<T>{} : c);
      if (row.c_n && unit < H_) store_first(row.c_n + unit, c, H_ - unit);
      keep(row, 0, unit, i);
      keep(row, 1, unit, f);
      keep(row, 2, unit, candidate);
      keep(row, 3, unit, o);
      keep(row, 4, unit, c);
      const Vec<T> out = o * tanh<T>(c);
      if (projected_) {
        store(inner_ + row.b * ldu_ + unit, out);
      } else {
        put_h(row, unit, out);
      }
    } else if constexpr (cell == Cell::kGru) {
      // n = tanh(n_x + r n_h),  h' = n + z (h - n)
      const Vec<T> r = sigmoid<T>(load(g + kUnits)), z = sigmoid<T>(load(g + 2 * kUnits));
      const Vec<T> n_h = load(g + 3 * kUnits);
      const Vec<T> n = tanh<T>(load(g) + r * n_h);
      keep(row, 0, unit, r);
      keep(row, 1, unit, z);
      keep(row, 2, unit, n);
      keep(row, 3, unit, n_h);
      put_h(row, unit, n + z * (load(h + row.b * ldh_ + unit) - n));
    } else if constexpr (cell == Cell::kGruResetBefore) {
      // r and z, and the reset state that n will be made from
      const Vec<T> r = sigmoid<T>(load(g + kUnits)), z = sigmoid<T>(load(g + 2 * kUnits));
      store(g + 2 * kUnits, z);
      store(inner_ + row.b * ldu_ + unit, r * load(h + row.b * ldh_ + unit));
      keep(row, 0, unit, r);
      keep(row, 1, unit, z);
    } else {
      const Vec<T> a = load(g);
      put_h(row, unit, cell == Cell::kRnnTanh ? tanh<T>(a) : (a < T(0) ? Vec<T>{} : a));
    }
  }

  const Forward<T>& f_;
  const Sequence& s_;
  const int64_t H_, Hp_, P_size_;
  const bool projected_, few_, split_units_;
  Weights_ own_;             // memory for weights that this call packs
  Weights_ weights_;         // of the layer at hand
  const int64_t ldh_, ldu_;  // strides of rows of h, and of c and inner; odd multiples of 64 bytes
  int64_t chunk_rows_, gates_stride_, scratch_size_;
  const Weights<const T>* w_ = nullptr;         // of the layer at hand
  bool pack_input_ = true, pack_state_ = true;  // else its products read the weights as they are
  T* h_[2];                                     // (B, ldh) before and after a step
  T* c_ = nullptr;                              // (B, ldu)
  T* inner_ = nullptr;  // (B, ldu) o tanh(c) before the projection, or r h with reset before
  T* out_ = nullptr;    // (B, state panels) projected outputs of a step
  T* gates_;            // per rank: a chunk of gate pre-activations
  T* scratch_;          // per rank
  const T** features_;  // per rank: rows of the input, and
  const T** factors_;   // what they are multiplied by
  Row* rows_;           // per rank
  Rows<T> y_;
  T* reserve_;
  T *h_n_, *c_n_;
};

// Outputs of all layers but the last: kept in the reserve for backward, else two that take turns.
// A layer overwrites those of the layer two below, at steps that the layer between has read.
template <typename T>
struct InnerOutputs {
  T* kept = nullptr;
  T* spare[2] = {nullptr, nullptr};
  int64_t size, width;

  InnerOutputs(const Forward<T>& f, Arena& arena)
      : size(f.sequence.N * f.D * f.P), width(f.D * f.P) {
    if (f.reserve) {
      kept = f.reserve + f.L * f.D * f.sequence.N * reserve_slots(f.cell) * padded_units(f.H);
    } else {
      for (int64_t i = 0; i < std::min<int64_t>(f.L - 1, 2); ++i) spare[i] = arena.take<T>(size);
    }
  }

  T* of(int64_t l) const { return kept ? kept + l * size : spare[l % 2]; }
  const T* below(int64_t l) const { return l > 0 ? of(l - 1) : nullptr; }
  Rows<T> output(const Forward<T>& f, int64_t l) const {
    return l == f.L - 1 ? f.y : Rows<T>{of(l), nullptr, width};
  }
};

template <Cell cell, typename T, typename S>
static size_t forward_stack(const Forward<T>& f, const Member* member, void* workspace) {
  using Layer = LayerForward<cell, T, S>;
  Arena arena(workspace);
  const InnerOutputs<T> inner(f, arena);
  Layer direction0(f, arena, largest_input(f));
  Layer direction1 = f.D == 2 ? Layer(f, arena, largest_input(f)) : direction0;
  if (member == nullptr) return arena.used();
  for (int64_t l = 0; l < f.L; ++l) {
    const LayerInput<T> input = layer_input(f, l, inner.below(l));
    for (int64_t d = 0; d < f.D; ++d) {
      Member group;
      if (!join_direction(f.D, d, *member, group)) continue;
      (d == 0 ? direction0 : direction1).run(l, d, input, inner.output(f, l), f.reserve, group);
    }
    member->sync();
  }
  return arena.used();
}

// The same with layers on threads, dealt out in turn: every thread has buffers of its own and works
// alone, a chunk of steps behind the layer below.
template <Cell cell, typename T, typename S>
static size_t forward_wavefront(const Forward<T>& f, const Member* member, void* workspace) {
  Arena arena(workspace);
  const InnerOutputs<T> inner(f, arena);
  Signal* done = arena.take<Signal>(f.L);
  Forward<T> alone = f;
  alone.plan.threads = 1;
  const int64_t rank = member ? member->rank : 0;
  const auto layer = [&] { return LayerForward<cell, T, S>(alone, arena, largest_input(f)); };
  for (int64_t before = 0; before < rank; ++before) layer();
  LayerForward<cell, T, S> mine = layer();
  if (member == nullptr) {
    for (int64_t after = 1; after < f.plan.threads; ++after) layer();
    return arena.used();
  }
  if (rank == 0)
    for (int64_t l = 0; l < f.L; ++l) new (done + l) Signal;
  member->sync();
  for (int64_t l = rank; l < f.L; l += member->size) {
    const LayerInput<T> input = layer_input(f, l, inner.below(l));
    mine.run(l, 0, input, inner.output(f, l), f.reserve, Member(0, 1, member->barriers),
             l > 0 ? done + l - 1 : nullptr, done + l);
  }
  member->sync();
  return arena.used();
}

// ---- tables -------------------------------------------------------------------------------------

template <Cell cell, typename T>
static int64_t token_gates_width(const Stack<T>& stack) {
  using Panels_ = Panels<cell, T, T>;
  return stack.D * panels_of(padded_units(stack.H), Panels_::kUnits) * Panels_::kColumns;
}

template <Cell cell, typename T, typename S>
static size_t token_gates(const TokenGates<T>& g, void* workspace) {
  using Panels_ = Panels<cell, T, S>;
  Arena arena(workspace);
  const T** features = arena.take<const T*>(kBlockRows);
  Arena sizes(nullptr);
  T* scratch = arena.take<T>(Panels_(g, sizes, g.I).scratch_size(kBlockRows));
  if (workspace == nullptr) return arena.used();
  const int64_t width = token_gates_width<cell>(g);
  for (int64_t d = 0; d < g.D; ++d) {
    const Panels_ weights = packed_layer<cell, T, S>(g, const_cast<void*>(g.packed), d);
    for (int64_t first = 0; first < g.V; first += kBlockRows) {
      const int64_t count = std::min(kBlockRows, g.V - first);
      for (int64_t m = 0; m < count; ++m) features[m] = g.features + (first + m) * g.I;
      T* rows = g.rows + first * width + d * weights.count() * Panels_::kColumns;
      weights.project(
          {count, 0, 0, features, nullptr, nullptr, 0, rows, width, 0, nullptr, 0, scratch}, 0,
          weights.count());
    }
  }
  return arena.used();
}
