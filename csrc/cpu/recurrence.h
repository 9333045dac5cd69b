// One direction of a layer with the variants of row_step.h: per step a product of the rows that run
// and a packed matrix, then the cell row by row. A member of the team carries rows of its own
// through all steps and waits for nobody; a row's numbers are together, so that what looks at
// all units of a row, such as layer normalization, needs no meeting either.

// ---- noise --------------------------------------------------------------------------------------

// Philox in lanes of 64 bits, of which products read the lower half.
typedef uint64_t Wide __attribute__((vector_size(ISA_VECTOR_BYTES)));
inline constexpr int64_t kWideLanes = ISA_VECTOR_BYTES / 8;

ISA_INLINE Wide product_of_halves(Wide a, uint32_t factor) {
#if ISA_VECTOR_BYTES == 64
  return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(factor));
#elif ISA_VECTOR_BYTES == 32
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
  return (a & 0xffffffff) * uint64_t{factor};
#endif
}

// What a call draws at once: four units to a lane.
inline constexpr int64_t kDrawn = 4 * kWideLanes;

// The words of units u, u + 1, ...; u is a multiple of four.
ISA_INLINE void philox(uint64_t seed, int64_t u, int kind, int64_t b, int64_t t, uint32_t stream,
                       uint32_t (&words)[kDrawn]) {
  Wide n0, n1 = Wide{} + static_cast<uint32_t>(b), n2 = Wide{} + static_cast<uint32_t>(t);
  Wide n3 = Wide{} + stream;
  for (int64_t lane = 0; lane < kWideLanes; ++lane)
    n0[lane] = static_cast<uint64_t>(u + 4 * lane + kind);
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Wide p = product_of_halves(n0, kPhiloxFactor0), q = product_of_halves(n2, kPhiloxFactor1);
    n0 = (q >> 32) ^ n1 ^ key0;
    n2 = (p >> 32) ^ n3 ^ key1;
    n1 = q, n3 = p;
    key0 += kPhiloxStep0, key1 += kPhiloxStep1;
  }
  const auto first = (Vec<double>)((n0 & 0xffffffff) | n1 << 32);
  const auto last = (Vec<double>)((n2 & 0xffffffff) | n3 << 32);
  using Lanes = std::make_integer_sequence<int64_t, kWideLanes>;
  const Vec<double> halves[2] = {interleave<double, false>(first, last, Lanes{}),
                                 interleave<double, true>(first, last, Lanes{})};
  __builtin_memcpy(words, halves, sizeof halves);
}

// A word for each lane of a Vec<T>, in its lower 32 bits.
template <typename T>
ISA_INLINE Vec<Bits<T>> load_words(const uint32_t* words) {
  typedef uint32_t Narrow __attribute__((vector_size(kLanes<T> * 4)));
  Narrow narrow;
  __builtin_memcpy(&narrow, words, sizeof narrow);
  return __builtin_convertvector(narrow, Vec<Bits<T>>);
}

// Whether a word, taken as without a sign, is below the limit.
template <typename T>
ISA_INLINE auto below(Vec<Bits<T>> word, uint32_t limit) {
  if constexpr (sizeof(T) == 4) {
    constexpr auto kSign = std::numeric_limits<int32_t>::min();
    return (word ^ kSign) < (static_cast<int32_t>(limit) ^ kSign);
  } else {
    return word < static_cast<int64_t>(limit);
  }
}

// ---- the machine of row_step.h ------------------------------------------------------------------

template <typename Number>
struct VectorUnits {
  using T = Number;
  using A = Number;
  using V = Vec<Number>;
  static constexpr int64_t W = kLanes<T>;

  VectorUnits() { std::fill_n(drawn_[2], kDrawn, T(1)); }

  template <typename Body>
  ISA_INLINE void units(int64_t n, const Body& body) const {
    for (int64_t u = 0; u < n; u += W) body(u, n - u);
  }
  ISA_INLINE V load(const T* row, int64_t u, int64_t left) const {
    return load_first(row + u, left);
  }
  ISA_INLINE void store(T* row, int64_t u, int64_t left, V v) const {
    store_first(row + u, v, left);
  }
  ISA_INLINE A total(V v) const {
    A sum = 0;
    for (int64_t lane = 0; lane < W; ++lane) sum += v[lane];
    return sum;
  }
  ISA_INLINE V first(V v, int64_t left) const {
    if (left >= W) return v;
    alignas(64) T lanes[W];
    ISA::store(lanes, v);
    return load_first(static_cast<const T*>(lanes), left);
  }
  ISA_INLINE bool leads() const { return true; }

  static ISA_INLINE V sigmoid(V v) { return ISA::sigmoid<T>(v); }
  static ISA_INLINE V tanh(V v) { return ISA::tanh<T>(v); }
  static ISA_INLINE V hard_sigmoid(V v) { return clamp<T>(v / T(6) + T(0.5), T(0), T(1)); }
  static ISA_INLINE A inverse_root(A x) { return 1 / std::sqrt(x); }
  static ISA_INLINE T narrowed(A x) { return x; }
  static ISA_INLINE A widened(T x) { return x; }

  ISA_INLINE Drawn<VectorUnits> noise(const Noise& noise, int64_t t, int64_t b, int64_t u) const {
    if (noise.seed == nullptr)
      return {V{} + T(noise.zoneout_h), V{} + T(noise.zoneout_c), V{} + T(1)};
    const int64_t at = u % kDrawn;
    if (at == 0) draw(noise, t, b, u);
    return {ISA::load(drawn_[0] + at), ISA::load(drawn_[1] + at), ISA::load(drawn_[2] + at)};
  }

 private:
  // For the next kDrawn units. What has no probability keeps the value that it began with.
  __attribute__((noinline)) void draw(const Noise& noise, int64_t t, int64_t b, int64_t u) const {
    const auto take = [&](int kind, double probability, T happens, T otherwise) {
      if (probability == 0) return;
      uint32_t words[kDrawn];
      philox(static_cast<uint64_t>(*noise.seed), u, kind, b, t, noise.stream, words);
      for (int64_t i = 0; i < kDrawn; i += W) {
        const auto is = below<T>(load_words<T>(words + i), threshold(probability));
        ISA::store(drawn_[kind] + i, is ? V{} + happens : V{} + otherwise);
      }
    };
    take(0, noise.zoneout_h, 1, 0);
    take(1, noise.zoneout_c, 1, 0);
    take(2, noise.candidate, 0, static_cast<T>(1 / (1 - noise.candidate)));
  }

  // keep_h, keep_c and candidate of the units from the last multiple of kDrawn on. A loop asks for
  // them in order, and so draws them at the first.
  alignas(ISA_VECTOR_BYTES) mutable T drawn_[3][kDrawn] = {};
};

// ---- rows ---------------------------------------------------------------------------------------

// From row to row of a buffer: padded, and so that rows do not meet in the same sets of a cache.
constexpr int64_t row_stride(int64_t columns) {
  return round_up(columns, kUnitPadding) + kUnitPadding;
}

// A row that is at hand in a step.
struct RunningRow {
  Place at;
  int64_t j;  // among those of the step
};

// The rows of a member that run at a step, in `rows`. What they leave behind in a step that they do
// not run is cleared by `idle(row)`.
template <typename T, typename Idle>
static int64_t running_rows(const Recurrence<T>& a, const Member& member, int64_t t,
                            RunningRow* rows, const Idle& idle) {
  int64_t count = 0;
  for (int64_t b = member.rank; b < a.B; b += member.size) {
    const bool runs = a.length == nullptr || t < a.length[b];
    if (!runs && a.offset != nullptr) continue;
    const int64_t row = (a.offset ? a.offset[t] : t * a.B) + b;
    if (!runs) {
      idle(row);
      continue;
    }
    rows[count] = {{row, t, b, a.reset != nullptr && a.reset[row] != 0}, count};
    ++count;
  }
  return count;
}

template <typename T>
static void fill_state(const T* from, int64_t b, int64_t count, T* to) {
  if (from != nullptr) {
    std::copy_n(from + b * count, count, to);
  } else {
    std::fill_n(to, count, T(0));
  }
}

// Row `row` of a matrix that may not be there.
template <typename T>
ISA_INLINE T* row_of(T* matrix, int64_t row, int64_t width) {
  return matrix != nullptr ? matrix + row * width : nullptr;
}

template <typename T>
static void clear_row(T* matrix, int64_t row, int64_t width) {
  if (matrix != nullptr) std::fill_n(matrix + row * width, width, T(0));
}

// to = a + b over n numbers; either may be null: zero.
template <typename T>
static void add_rows(int64_t n, const T* a, const T* b, T* to) {
  for (int64_t k = 0; k < n; k += kLanes<T>) {
    Vec<T> sum = a != nullptr ? load_first(a + k, n - k) : Vec<T>{};
    if (b != nullptr) sum += load_first(b + k, n - k);
    store_first(to + k, sum, n - k);
  }
}

// to *= by over n numbers.
template <typename T>
static void multiply_rows(int64_t n, const T* by, T* to) {
  for (int64_t k = 0; k < n; k += kLanes<T>)
    store_first(to + k, load_first(to + k, n - k) * load_first(by + k, n - k), n - k);
}

// ---- forward ------------------------------------------------------------------------------------

// Of a call of RecurrenceForward, or of RecurrenceTangent, whose steps differ in their last line.
template <Cell cell, typename T, typename Call>
static size_t recurrence_forward(const Call& f, const Member* member, void* workspace) {
  using Units = VectorUnits<T>;
  constexpr bool kTangent = std::is_base_of_v<RecurrenceTangent<T>, Call>;
  constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;
  constexpr int64_t G = num_gates(cell), kSlots = kept_slots(cell);
  const int64_t B = f.B, H = f.H, P = f.P;
  const int64_t most = panels_of(B, f.plan.threads);  // rows of a member
  const bool few = B <= kFewTileRows, projected = f.w_hr != nullptr;
  const bool with_cell = has_cell(cell, projected);
  Arena arena(workspace);
  PackedMatrix<T> w_hh(f.packed_hh, arena, P, kTwoPhases ? 2 * H : G * H);
  PackedMatrix<T> w_hn, w_hr;
  if (kTwoPhases) w_hn = PackedMatrix<T>(f.packed_hn, arena, P, H);
  if (projected) w_hr = PackedMatrix<T>(f.packed_hr, arena, H, P);
  const auto per_member = [&](int64_t count) { return own_part<T>(arena, f.plan, member, count); };
  const int64_t ld_sum = row_stride(w_hh.width()), ld_h = row_stride(P), ld_u = row_stride(H);
  const int64_t ld_n = row_stride(w_hn.width()), ld_out = row_stride(w_hr.width());
  T* const h = arena.take<T>(B * ld_h);
  T* const c = with_cell ? arena.take<T>(B * ld_u) : nullptr;
  T* const sums = per_member(most * ld_sum);
  T* const h_in = per_member(most * ld_h);
  T* const work = per_member(ld_u);
  T* const inner = projected || kTwoPhases ? per_member(most * ld_u) : nullptr;
  T* const candidate = kTwoPhases ? per_member(most * ld_n) : nullptr;
  T* const out = projected ? per_member(most * ld_out) : nullptr;
  T* const scratch = per_member(
      std::max({w_hh.scratch_size(most), w_hn.scratch_size(most), w_hr.scratch_size(most)}));
  auto* const rows = own_part<RunningRow>(arena, f.plan, member, most);
  if (member == nullptr) return arena.used();

  const auto pack = [&](const PackedBlock& block, PackedMatrix<T>& matrix, const T* w) {
    const auto share = member->share(matrix.panels());
    if (block.memory == nullptr) matrix.pack_transpose(w, share.begin, share.end);
  };
  pack(f.packed_hh, w_hh, f.w_hh);
  if (kTwoPhases) pack(f.packed_hn, w_hn, f.w_hh + 2 * H * P);
  if (projected) pack(f.packed_hr, w_hr, f.w_hr);
  for (int64_t b = member->rank; b < B; b += member->size) {
    fill_state(f.h_0, b, P, h + b * ld_h);
    if (with_cell) fill_state(f.c_0, b, H, c + b * ld_u);
  }
  member->sync();

  const Kept<T>& kept = f.kept;
  const Units units;
  const auto row_at = [&](const RunningRow& running) {
    const int64_t row = running.at.row, j = running.j, b = running.at.b;
    ForwardRow<Units> r{};
    r.x = f.x + row * G * H;
    r.sum = sums + j * ld_sum;
    r.candidate = row_of(candidate, j, ld_n);
    r.out = row_of(out, j, ld_out);
    r.h = h + b * ld_h;
    r.c = row_of(c, b, ld_u);
    r.work = work;
    r.h_in = h_in + j * ld_h;
    r.inner = row_of(inner, j, ld_u);
    r.y = f.y + row * P;
    r.cells = row_of(f.cells, row, H);
    r.kept_step = row_of(kept.step, row, kSlots * H);
    r.kept_h_in = row_of(kept.h_in, row, P);
    r.kept_inner = row_of(kept.inner, row, H);
    r.kept_out = row_of(kept.out, row, P);
    r.kept_sums = row_of(kept.sums, row, G * H);
    r.kept_moments = row_of(kept.moments, row, kMoments);
    return r;
  };
  const auto idle = [&](int64_t row) {
    clear_row(f.y, row, P);
    clear_row(f.cells, row, H);
    clear_row(kept.step, row, kSlots * H);
    clear_row(kept.h_in, row, P);
    clear_row(kept.inner, row, H);
    clear_row(kept.out, row, P);
    clear_row(kept.sums, row, G * H);
    clear_row(kept.moments, row, kMoments);
    if constexpr (kTangent) clear_row(f.second, row, kSlots * H);
  };
  const auto step = [&](const Place& at, const ForwardRow<Units>& r) {
    if constexpr (kTangent) {
      row_tangent<Units, cell>(
          units, f, r,
          {row_of(f.sum, at.row, G * H), f.step + at.row * kSlots * H, row_of(f.whole_h, at.row, H),
           row_of(f.whole_c, at.row, H), row_of(f.second, at.row, kSlots * H)});
    } else {
      row_forward<Units, cell>(units, f, at, r);
    }
  };
  for (int64_t s = 0; s < f.T_; ++s) {
    // A cache that holds a part of the weights has the right one when they are gone through back
    // and forth.
    const bool turned = s % 2 != 0;
    const int64_t count = running_rows(f, *member, f.reverse ? f.T_ - 1 - s : s, rows, idle);
    const auto each = [&](const auto& body) {
      for (int64_t j = 0; j < count; ++j) body(rows[j].at, row_at(rows[j]));
    };
    each([&](const Place& at, const auto& r) { row_enter(units, f, at, r); });
    w_hh.multiply(count, few, h_in, ld_h, sums, ld_sum, scratch, turned);
    if constexpr (kTwoPhases) {
      each([&](const Place&, const auto& r) { row_reset(units, f, r); });
      w_hn.multiply(count, few, inner, ld_u, candidate, ld_n, scratch, turned);
    }
    each(step);
    if (projected) {
      w_hr.multiply(count, few, inner, ld_u, out, ld_out, scratch, turned);
      each([&](const Place& at, const auto& r) { row_leave(units, f, at, r); });
    }
  }
  for (int64_t b = member->rank; b < B; b += member->size) {
    std::copy_n(h + b * ld_h, P, f.h_n + b * P);
    if (with_cell) std::copy_n(c + b * ld_u, H, f.c_n + b * H);
  }
  return arena.used();
}

// ---- backward -----------------------------------------------------------------------------------

template <Cell cell, typename T>
static size_t recurrence_backward(const Planned<RecurrenceBackward<T>>& f, const Member* member,
                                  void* workspace) {
  using Units = VectorUnits<T>;
  constexpr bool kTwoPhases = cell == Cell::kGruResetBefore;
  constexpr int64_t G = num_gates(cell), kSlots = kept_slots(cell);
  const int64_t B = f.B, H = f.H, P = f.P, width = G * H;
  const int64_t most = panels_of(B, f.plan.threads);
  const bool few = B <= kFewTileRows, projected = f.w_hr != nullptr;
  const bool with_cell = has_cell(cell, projected);
  Arena arena(workspace);
  PackedMatrix<T> w_hh(arena, kTwoPhases ? 2 * H : width, P);
  PackedMatrix<T> w_hn, w_hr;
  if (kTwoPhases) w_hn = PackedMatrix<T>(arena, H, P);
  if (projected) w_hr = PackedMatrix<T>(arena, P, H);
  const auto per_member = [&](int64_t count) { return own_part<T>(arena, f.plan, member, count); };
  const int64_t ld_h = row_stride(P), ld_u = row_stride(H), ld_sum = row_stride(width);
  const int64_t ld_inner = row_stride(w_hr.width()), ld_n = row_stride(w_hn.width());
  T* const d_h = arena.take<T>(B * ld_h);
  T* const d_c = with_cell ? arena.take<T>(B * ld_u) : nullptr;
  T* const d_sums = per_member(most * ld_sum);
  T* const d_h_in = per_member(most * row_stride(w_hh.width()));
  const int64_t ld_in = row_stride(w_hh.width());
  T* const work = per_member(most * ld_u);
  T* const d_out = projected ? per_member(most * ld_h) : nullptr;
  T* const d_inner = projected ? per_member(most * ld_inner) : nullptr;
  T* const d_reset_h = kTwoPhases ? per_member(most * ld_n) : nullptr;
  auto* const rows = own_part<RunningRow>(arena, f.plan, member, most);
  if (member == nullptr) return arena.used();

  w_hh.pack(f.w_hh, *member);
  if (kTwoPhases) w_hn.pack(f.w_hh + 2 * H * P, *member);
  if (projected) w_hr.pack(f.w_hr, *member);
  for (int64_t b = member->rank; b < B; b += member->size) {
    fill_state(f.d_h_n, b, P, d_h + b * ld_h);
    if (with_cell) fill_state(f.d_c_n, b, H, d_c + b * ld_u);
  }
  member->sync();

  const Kept<const T>& kept = f.kept;
  const Units units;
  T* const d_sum = f.d_sum != nullptr ? f.d_sum : f.d_x;
  const auto row_at = [&](const RunningRow& running) {
    const int64_t row = running.at.row, j = running.j, b = running.at.b;
    BackwardRow<Units> r{};
    r.d_h = d_h + b * ld_h;
    r.d_c = row_of(d_c, b, ld_u);
    r.work = work + j * ld_u;
    r.d_inner = row_of(d_inner, j, ld_inner);
    r.d_reset_h = row_of(d_reset_h, j, ld_n);
    r.d_h_in = d_h_in + j * ld_in;
    r.d_y = row_of(f.d_y, row, P);
    r.d_cells = row_of(f.d_cells, row, H);
    r.d_kept_step = row_of(f.d_step, row, kSlots * H);
    r.d_kept_h_in = row_of(f.d_h_in, row, P);
    r.d_x = f.d_x + row * width;
    r.d_sum = row_of(f.d_sum, row, width);
    r.d_cell = row_of(f.d_cell, row, H);
    r.d_out = row_of(f.d_out, row, P);
    r.whole_h = row_of(f.whole_h, row, H);
    r.whole_c = row_of(f.whole_c, row, H);
    r.kept_step = kept.step + row * kSlots * H;
    r.kept_h_in = kept.h_in + row * P;
    r.kept_out = row_of(kept.out, row, P);
    r.kept_sums = row_of(kept.sums, row, width);
    r.kept_moments = row_of(kept.moments, row, kMoments);
    return r;
  };
  const auto idle = [&](int64_t row) {
    clear_row(f.d_x, row, width);
    clear_row(f.d_sum, row, width);
    clear_row(f.d_cell, row, H);
    clear_row(f.d_out, row, P);
    clear_row(f.whole_h, row, H);
    clear_row(f.whole_c, row, H);
  };
  for (int64_t s = f.T_ - 1; s >= 0; --s) {
    const int64_t count = running_rows(f, *member, f.reverse ? f.T_ - 1 - s : s, rows, idle);
    const auto each = [&](const auto& body) {
      for (int64_t j = 0; j < count; ++j) body(rows[j].at, row_at(rows[j]));
    };
    // Rows of a result, one behind the other for the product.
    const auto gather = [&](const T* matrix, int64_t from, int64_t columns, int64_t size, T* to,
                            int64_t ld) {
      for (int64_t j = 0; j < count; ++j)
        std::copy_n(matrix + rows[j].at.row * size + from, columns, to + j * ld);
    };
    each([&](const Place& at, const auto& r) { row_return(units, f, at, r); });
    if (projected) {
      gather(f.d_out, 0, P, P, d_out, ld_h);
      w_hr.multiply(count, few, d_out, ld_h, d_inner, ld_inner);
    }
    each([&](const Place& at, const auto& r) { row_backward<Units, cell>(units, f, at, r); });
    if constexpr (kTwoPhases) {
      gather(d_sum, 2 * H, H, width, d_sums, ld_sum);
      w_hn.multiply(count, few, d_sums, ld_sum, d_reset_h, ld_n);
      each([&](const Place&, const auto& r) { row_reset_backward(units, f, r); });
    }
    gather(d_sum, 0, kTwoPhases ? 2 * H : width, width, d_sums, ld_sum);
    w_hh.multiply(count, few, d_sums, ld_sum, d_h_in, ld_in);
    each([&](const Place& at, const auto& r) { row_enter_backward(units, f, at, r); });
  }
  for (int64_t b = member->rank; b < B; b += member->size) {
    std::copy_n(d_h + b * ld_h, P, f.d_h_0 + b * P);
    if (with_cell) std::copy_n(d_c + b * ld_u, H, f.d_c_0 + b * H);
  }
  return arena.used();
}
