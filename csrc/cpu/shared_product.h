// Products that the first member of a team asks for and all members form: for calls of so few rows
// that bringing the weights is what takes time, of which each member then brings a share, and keeps
// it in its own cache from step to step. A number is the sum that it is in a team of one.

template <typename T>
struct SharedProduct {
  const PackedMatrix<T>* by;  // null: no more are to come
  int64_t rows;
  bool few;
  const T* a;
  int64_t lda;
  T* c;
  int64_t ldc;
  bool turned;
  const T* add;
  int64_t ldadd;

  // Panels [begin, end) of it; scratch of the member.
  void form(Member::Range panels, T* scratch) const {
    by->multiply(rows, few, a, lda, c, ldc, scratch, panels, turned, add, ldadd);
  }
};

template <typename T>
class Helpers {
 public:
  // `asked` is the same memory for all members.
  Helpers(const Member& team, SharedProduct<T>* asked) : team_(team), asked_(asked) {}

  // Of the first member: the product, formed by all.
  void form(const SharedProduct<T>& product, T* scratch) const {
    const int64_t panels = product.by->panels();
    if (panels == 1) return product.form({0, panels}, scratch);
    *asked_ = product;
    team_.sync();
    product.form(team_.share(panels), scratch);
    team_.sync();
  }
  void dismiss() const {
    asked_->by = nullptr;
    team_.sync();
  }

  // Of the others: until they are dismissed.
  void help(T* scratch) const {
    while (true) {
      team_.sync();
      const SharedProduct<T> product = *asked_;
      if (product.by == nullptr) return;
      product.form(team_.share(product.by->panels()), scratch);
      team_.sync();
    }
  }

 private:
  const Member& team_;
  SharedProduct<T>* const asked_;
};

// Runs `lead(helpers, memory)` with `bytes` of memory on the first of so many members, and lets the
// others help, with scratch of that many elements each. Returns the size of the workspace; without
// a member that is all.
template <typename T, typename Lead>
static size_t with_helpers(const Member* member, int64_t threads, int64_t scratch, size_t bytes,
                           char* workspace, const Lead& lead) {
  Arena arena(workspace);
  auto* const asked = arena.take<SharedProduct<T>>(1);
  const int64_t each = round_up(scratch, kUnitPadding);
  T* const all_scratch = arena.take<T>(threads * each);
  char* const memory = arena.take<char>(static_cast<int64_t>(bytes));
  if (member == nullptr) return arena.used();
  const Helpers<T> helpers(*member, asked);
  if (member->rank > 0) {
    helpers.help(all_scratch + member->rank * each);
  } else {
    lead(helpers, memory);
    helpers.dismiss();
  }
  return arena.used();
}
