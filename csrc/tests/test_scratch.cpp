// The memory that threads keep between calls: pieces do not overlap, frames nest, what was large
// goes, and threads do not share.
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/scratch.h"

using seq2seq_ext::Scratch;

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

struct Piece {
  unsigned char* memory;
  size_t bytes;
  unsigned char mark;

  bool intact() const {
    for (size_t i = 0; i < bytes; ++i)
      if (memory[i] != mark) return false;
    return true;
  }
};

Piece take(Scratch::Frame& frame, size_t bytes, unsigned char mark) {
  const Piece piece{static_cast<unsigned char*>(frame.take(bytes)), bytes, mark};
  std::memset(piece.memory, mark, bytes);
  return piece;
}

void pieces_do_not_overlap() {
  for (int call = 0; call < 3; ++call) {
    Scratch::Frame frame;
    std::vector<Piece> pieces;
    for (size_t i = 0; i < 60; ++i)
      pieces.push_back(take(frame, i * i * i % 50'000, static_cast<unsigned char>(i + 1)));
    for (const Piece& piece : pieces) {
      expect(reinterpret_cast<uintptr_t>(piece.memory) % Scratch::kAlignment == 0, "alignment");
      expect(piece.intact(), "pieces keep what was written");
    }
  }
}

void frames_nest() {
  Scratch::Frame outer;
  const Piece first = take(outer, 1000, 1);
  void* inner_memory;
  {
    Scratch::Frame inner;
    inner_memory = take(inner, 1 << 20, 2).memory;
    expect(first.intact(), "an inner frame leaves the outer one's pieces alone");
  }
  expect(take(outer, 1 << 20, 3).memory == inner_memory, "what an inner frame gave back is reused");
  expect(first.intact(), "pieces outlive inner frames");
}

void the_next_call_finds_the_memory() {
  void* first;
  {
    Scratch::Frame frame;
    frame.take(3 << 20);
    frame.take(5 << 20);
  }
  {
    Scratch::Frame frame;
    first = frame.take(3 << 20);
    frame.take(5 << 20);
  }
  const size_t held = Scratch::held();
  expect(held >= size_t{8} << 20, "what two blocks held, one holds");
  for (int call = 0; call < 5; ++call) {
    Scratch::Frame frame;
    expect(frame.take(3 << 20) == first, "the same memory in every call");
    frame.take(5 << 20);
  }
  expect(Scratch::held() == held, "calls of one size do not grow it");
}

void too_much_is_given_back() {
  {
    Scratch::Frame frame;
    frame.take(Scratch::kKeptByThread + 1);
    expect(Scratch::held() > Scratch::kKeptByThread, "a call has what it needs");
  }
  expect(Scratch::held() == 0, "more than a thread may keep goes with the call");
}

void threads_have_their_own() {
  std::vector<std::thread> threads;
  std::vector<void*> memory(4);
  std::vector<int> good(4);
  for (size_t i = 0; i < memory.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int call = 0; call < 50; ++call) {
        Scratch::Frame frame;
        const Piece piece = take(frame, 100'000, static_cast<unsigned char>(i + 1));
        memory[i] = piece.memory;
        good[i] += piece.intact();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int count : good) expect(count == 50, "no other thread writes here");
}

void all_threads_together_keep_little() {
  // Each keeps its memory while it lives: more than together they may.
  constexpr size_t kEach = Scratch::kKeptByThread / 2;
  constexpr size_t kThreads = 2 * Scratch::kKeptByAll / Scratch::kKeptByThread + 4;
  std::vector<size_t> held(kThreads);
  size_t sum = 0;
  std::vector<std::thread> threads;
  // One after another, but none ends before the last has looked.
  size_t turn = 0;
  std::mutex mutex;
  std::condition_variable changed;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return turn == i; });
      {
        Scratch::Frame frame;
        frame.take(kEach);
      }
      held[i] = Scratch::held();
      ++turn;
      changed.notify_all();
      changed.wait(lock, [&] { return turn == kThreads; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t each : held) sum += each;
  expect(held[0] >= kEach, "the first thread keeps its memory");
  expect(held[kThreads - 1] == 0, "the last finds no room left");
  expect(sum <= Scratch::kKeptByAll, "together they keep no more than they may");
  std::thread([&] {
    {
      Scratch::Frame frame;
      frame.take(kEach);
    }
    expect(Scratch::held() >= kEach, "threads that ended have left their room");
  }).join();
}

}  // namespace

int main() {
  pieces_do_not_overlap();
  frames_nest();
  the_next_call_finds_the_memory();
  too_much_is_given_back();
  threads_have_their_own();
  all_threads_together_keep_little();
  if (failures == 0) std::printf("scratch: all well\n");
  return failures != 0;
}
