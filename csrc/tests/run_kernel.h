// Runs a CPU kernel on a team of std::threads, in memory of exactly the size that it asks for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace seq2seq_ext {

// Memory of exactly that size, full of NaN.
class Block {
 public:
  explicit Block(size_t bytes) : data_(::operator new(bytes, std::align_val_t(64))) {
    std::fill_n(static_cast<unsigned char*>(data_), bytes, 0xFF);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { ::operator delete(data_, std::align_val_t(64)); }
  void* data() const { return data_; }

 private:
  void* data_;
};

// On call.plan.threads threads.
template <typename Call, typename Size, typename Kernel>
void run_kernel(const Call& call, Size size, Kernel kernel) {
  const Block block(size(call));
  void* const workspace = block.data();
  Barriers barriers;
  std::vector<std::thread> threads;
  for (int rank = 1; rank < call.plan.threads; ++rank) {
    threads.emplace_back(
        [&, rank] { kernel(call, Member(rank, call.plan.threads, &barriers), workspace); });
  }
  kernel(call, Member(0, call.plan.threads, &barriers), workspace);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace seq2seq_ext
