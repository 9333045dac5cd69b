#include "scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>
#include <vector>

namespace seq2seq_ext {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallestBlock = size_t{64} << 10;

constexpr size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

class Block {
 public:
  explicit Block(size_t bytes)
      : size_(round_up(bytes, bytes < kHugePage ? kSmallestBlock : kHugePage)),
        alignment_(std::align_val_t{bytes < kHugePage ? Scratch::kAlignment : kHugePage}),
        memory_(static_cast<char*>(::operator new(size_, alignment_))) {
    if (size_ >= kHugePage) advise_huge_pages(memory_, size_);
  }
  Block(Block&& other) noexcept
      : size_(other.size_), alignment_(other.alignment_), memory_(other.memory_) {
    other.memory_ = nullptr;
  }
  Block& operator=(Block&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(alignment_, other.alignment_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Block() {
    if (memory_ != nullptr) ::operator delete(memory_, alignment_);
  }

  size_t size() const { return size_; }
  char* at(size_t offset) const { return memory_ + offset; }

 private:
  size_t size_;
  std::align_val_t alignment_;
  char* memory_;
};

std::atomic<size_t> kept_by_all{0};

// The blocks of one thread. Blocks before `block` are full, those behind it empty.
class Blocks {
 public:
  ~Blocks() { keep(0); }

  size_t block = 0, used = 0, depth = 0;

  void* take(size_t bytes) {
    bytes = round_up(std::max<size_t>(bytes, 1), Scratch::kAlignment);
    while (block < blocks_.size() && used + bytes > blocks_[block].size()) {
      ++block;
      used = 0;
    }
    if (block == blocks_.size()) {
      // Twice what there is: many small pieces end up in few blocks.
      blocks_.emplace_back(
          std::max({bytes, wanted_, std::min(2 * held(), Scratch::kKeptByThread)}));
    }
    void* piece = blocks_[block].at(used);
    used += bytes;
    return piece;
  }

  // After a call. Where it took several blocks, the next one gets a single one as large as all of
  // them; what is more than may be kept goes.
  void tidy() {
    const size_t size = held();
    if (blocks_.size() == 1 && size == kept_) return;
    const size_t others = kept_by_all.load(std::memory_order_relaxed) - kept_;
    const bool keeps = size <= Scratch::kKeptByThread && others + size <= Scratch::kKeptByAll;
    wanted_ = keeps ? size : 0;
    if (!keeps || blocks_.size() > 1) blocks_.clear();
    keep(held());
  }

  size_t held() const {
    size_t sum = 0;
    for (const Block& each : blocks_) sum += each.size();
    return sum;
  }

 private:
  void keep(size_t bytes) {
    kept_by_all.fetch_add(bytes - kept_, std::memory_order_relaxed);  // modulo 2^64
    kept_ = bytes;
  }

  std::vector<Block> blocks_;
  size_t wanted_ = 0;  // bytes of the first block, at least
  size_t kept_ = 0;    // this thread's part of kept_by_all
};

Blocks& mine() {
  static thread_local Blocks blocks;
  return blocks;
}

}  // namespace

Scratch::Frame::Frame() {
  Blocks& blocks = mine();
  block_ = blocks.block;
  used_ = blocks.used;
  ++blocks.depth;
}

Scratch::Frame::~Frame() {
  Blocks& blocks = mine();
  blocks.block = block_;
  blocks.used = used_;
  if (--blocks.depth == 0) blocks.tidy();
}

void* Scratch::Frame::take(size_t bytes) { return mine().take(bytes); }

size_t Scratch::held() { return mine().held(); }

void advise_huge_pages(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(memory), kHugePage);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  // Advice: where it is not taken, pages are small.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace seq2seq_ext
