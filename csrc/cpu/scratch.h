// Memory for the length of a call, kept by the calling thread from one call to the next.
//
// A call of a small layer takes less time than the kernel takes to map fresh pages and zero them,
// so what one call took serves the next one. A thread keeps no more than kKeptByThread, all threads
// together no more than kKeptByAll; a call that needs more has it, and gives it back at once: at
// that size, and in huge pages, fresh memory takes 2 % of the time of the call. The memory of a
// thread goes when the thread ends.
#pragma once

#include <cstddef>
#include <cstdint>

namespace seq2seq_ext {

class Scratch {
 public:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kKeptByThread = size_t{64} << 20;
  static constexpr size_t kKeptByAll = size_t{512} << 20;

  // What is taken through a frame is given back when the frame ends. Frames of a thread nest; only
  // the innermost may be taken from.
  class Frame {
   public:
    Frame();
    ~Frame();
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

    // Uninitialized and aligned to kAlignment. Throws std::bad_alloc.
    void* take(size_t bytes);

    template <typename T>
    T* take(int64_t count) {
      return static_cast<T*>(take(static_cast<size_t>(count) * sizeof(T)));
    }

   private:
    size_t block_, used_;  // where to go back to
  };

  // Bytes that the calling thread holds.
  static size_t held();
};

// Asks for huge pages where [memory, memory + bytes) holds some whole: fresh memory then takes one
// page fault for every 2 MiB instead of 512.
void advise_huge_pages(void* memory, size_t bytes);

}  // namespace seq2seq_ext
