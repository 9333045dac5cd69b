// What forward and backward share: how a cell's gates lie in a panel, who computes what, the order
// in which steps are read, and the scratch memory.

// Gates in panels. A panel holds the weights of a block of hidden units with their gates side by
// side, so that one register tile yields every gate of those units and the gate mathematics follows
// while the tile is in the first-level cache. A tile row has `kSlots` slots of `kUnitVectors`
// vectors. The input projection fills the first kInputSlots, the recurrent product adds to the
// slots from kStateSlot on; between them lies what the two must not share. GRU wants W_in x and
// W_hn h apart, so its slots are (n_x, r, z, n_h) with the input in 0..2 and the state in 1..3.
// With reset before, r and z must be known before the n of the state can be had: (n, r, z),
// first 1..2, then 0.
template <Cell cell>
struct Panel;
template <>
struct Panel<Cell::kLstm> {
  static constexpr int kSlots = 4, kUnitVectors = 1, kInputSlots = 4, kStateSlot = 0,
                       kStateSlots = 4;
  static constexpr int kGate[kSlots] = {0, 1, 2, 3};
};
template <>
struct Panel<Cell::kGru> {
  static constexpr int kSlots = 4, kUnitVectors = 1, kInputSlots = 3, kStateSlot = 1,
                       kStateSlots = 3;
  static constexpr int kGate[kSlots] = {2, 0, 1, 2};
};
template <>
struct Panel<Cell::kGruResetBefore> {
  static constexpr int kSlots = 3, kUnitVectors = 1, kInputSlots = 3, kStateSlot = 1,
                       kStateSlots = 2;
  static constexpr int kGate[kSlots] = {2, 0, 1};
};
template <>
struct Panel<Cell::kRnnTanh> {
  static constexpr int kSlots = 1, kUnitVectors = 4, kInputSlots = 1, kStateSlot = 0,
                       kStateSlots = 1;
  static constexpr int kGate[kSlots] = {0};
};
template <>
struct Panel<Cell::kRnnRelu> : Panel<Cell::kRnnTanh> {};

// Vectors in the plain panels of products that have no gates.
inline constexpr int kPlainVectors = 4;
template <typename T>
inline constexpr int64_t kPlainColumns = kPlainVectors * kLanes<T>;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
constexpr int64_t panels_of(int64_t n, int64_t width) { return (n + width - 1) / width; }

// Columns of a matrix in plain panels. All have `vectors` vectors but the last, which has as many
// as it needs.
template <typename T>
struct PlainPanels {
  int64_t width;  // of the matrix
  int64_t vectors = kPlainVectors;

  int64_t columns() const { return vectors * kLanes<T>; }
  int64_t count() const { return panels_of(width, columns()); }
  int64_t vectors_of(int64_t panel) const {
    return std::min(vectors, panels_of(width - panel * columns(), kLanes<T>));
  }

  // As wide as can be with no member of a team of that size having much more than its share.
  static PlainPanels shared(int64_t width, int64_t members) {
    PlainPanels best{width};
    const auto most = [&](const PlainPanels& p) {
      return panels_of(p.count(), members) * p.vectors;
    };
    for (int64_t vectors = kPlainVectors - 1; vectors > 0; --vectors) {
      const PlainPanels p{width, vectors};
      if (most(p) < most(best)) best = p;
    }
    return best;
  }
};

// Hands out pieces of one block of memory. With no block it only counts, so that the same code that
// lays the buffers out also tells their size.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The rows of the batch that a member carries: first, first + step, ... Rows are dealt out in turn
// because they are sorted by length: every member gets long ones and short ones.
struct OwnRows {
  int64_t first, step;

  OwnRows(const Plan& plan, const Member& member)
      : first(plan.split == Split::kUnits ? 0 : member.rank),
        step(plan.split == Split::kUnits ? 1 : member.size) {}

  int64_t count(int64_t active) const {
    return active > first ? (active - first + step - 1) / step : 0;
  }
};

// The steps of one direction in its own order of reading.
class Walk {
 public:
  Walk(const Sequence& sequence, bool reverse) : s_(sequence), reverse_(reverse) {}

  int64_t time(int64_t step) const { return reverse_ ? s_.T - 1 - step : step; }
  // Whether row b has another step behind, or one before, the one at time t, in order of reading.
  bool has_next(int64_t t, int64_t b) const {
    return reverse_ ? t > 0 : t + 1 < s_.T && b < s_.active[t + 1];
  }
  bool has_previous(int64_t t, int64_t b) const {
    return reverse_ ? t + 1 < s_.T && b < s_.active[t + 1] : t > 0;
  }
  int64_t next(int64_t t, int64_t b) const { return s_.offset[reverse_ ? t - 1 : t + 1] + b; }
  int64_t previous(int64_t t, int64_t b) const { return s_.offset[reverse_ ? t + 1 : t - 1] + b; }
  // Time of the first step of row b, which must have one.
  int64_t first_time(int64_t b) const {
    if (!reverse_) return 0;
    int64_t t = s_.T - 1;
    while (b >= s_.active[t]) --t;
    return t;
  }
  bool resets(int64_t r) const { return s_.reset != nullptr && s_.reset[r] != 0; }
  int64_t source(int64_t b) const { return s_.source ? s_.source[b] : b; }

 private:
  const Sequence& s_;
  bool reverse_;
};

// The features that enter layer l: x, or the outputs of the layer below (compact rows of D * P),
// through the dropout mask of that layer.
template <typename T>
struct LayerInput {
  int64_t size;
  Rows<const T> rows, mask;
  bool is_gates = false;  // rows are those of TokenGates
};

template <typename T>
static int64_t layer_input_size(const Stack<T>& stack, int64_t l) {
  return l == 0 ? stack.I : stack.D * stack.P;
}

template <typename T>
static LayerInput<T> layer_input(const Stack<T>& stack, int64_t l, const T* below) {
  if (l == 0 && stack.gates) return {stack.I, stack.gates, {}, true};
  if (l == 0) return {stack.I, stack.x, {}};
  LayerInput<T> input{stack.D * stack.P, {below, nullptr, stack.D * stack.P}, {}};
  if (stack.dropout_mask) {
    input.mask = stack.dropout_mask;
    input.mask.base += (l - 1) * stack.mask_layer;
  }
  return input;
}

template <typename T>
static int64_t largest_input(const Stack<T>& stack) {
  return stack.L > 1 ? std::max(stack.I, stack.D * stack.P) : stack.I;
}

// Members of the smallest team that runs one direction.
template <typename T>
static int64_t smallest_group(const Stack<T>& stack) {
  return stack.D == 2 && stack.plan.threads > 1 ? stack.plan.threads / 2 : stack.plan.threads;
}

// The team for direction d: directions are independent, so two groups take one each where there
// are threads enough. Returns whether this member takes part in d.
static bool join_direction(int64_t D, int64_t d, const Member& member, Member& group) {
  group = member;
  if (D == 1 || member.size == 1) return true;
  int index;
  group = member.group(index);
  return index == d;
}
