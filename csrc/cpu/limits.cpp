// Times the loops of limits_loops.h on several threads at once.
//
// Every thread works in chunks of about a fifth of a millisecond, reads the clock after each, and
// keeps its best rate: a chunk that lost the core to another program does not count. All threads
// start together and go on until the same moment, so that they share caches, memory and the
// frequency that the processor grants to that many busy cores.
#include "limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "kernels.h"

namespace seq2seq_ext {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kChunkSeconds = 2e-4;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The best rate of `work`, which does one small piece and returns how much that was.
double best_rate(const std::function<int64_t()>& work, const std::atomic<bool>& stop) {
  double best = 0.0;
  while (!stop.load(std::memory_order_relaxed)) {
    const Clock::time_point start = Clock::now();
    int64_t done = 0;
    double taken = 0.0;
    do {
      done += work();
      taken = seconds_since(start);
    } while (taken < kChunkSeconds);
    best = std::max(best, static_cast<double>(done) / taken);
  }
  return best;
}

// The sum of the best rates of so many threads, one for each piece of work.
double sum_of_rates(const std::vector<std::function<int64_t()>>& works, double seconds) {
  std::atomic<size_t> ready{0};
  std::atomic<bool> stop{false};
  std::vector<double> rates(works.size());
  std::vector<std::thread> team;
  const auto finish = [&] {
    ready.store(works.size());
    stop.store(true);
    for (std::thread& thread : team) thread.join();
  };
  try {
    for (size_t i = 0; i < works.size(); ++i) {
      team.emplace_back([&, i] {
        works[i]();  // warm, and memory touched here first
        ready.fetch_add(1);
        while (ready.load() < works.size()) std::this_thread::yield();
        rates[i] = best_rate(works[i], stop);
      });
    }
  } catch (...) {  // the system has no more threads to give
    finish();
    throw;
  }
  while (ready.load() < works.size()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  finish();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

template <typename T>
void expect_above_zero(const char* name, T value) {
  if (value > T{0}) return;
  throw std::invalid_argument(std::string(name) + " must be above 0, got " + std::to_string(value));
}

}  // namespace

double measure_fma_peak(int threads, double seconds) {
  expect_above_zero("threads", threads);
  expect_above_zero("seconds", seconds);
  const Kernels& kernels = active_kernels();
  const auto work = [&kernels] {
    volatile float seed = 0.75f;
    float result;
    const int64_t done = kernels.multiply_add(4096, seed, &result);
    seed = result;
    return done;
  };
  return sum_of_rates({static_cast<size_t>(threads), work}, seconds);
}

double measure_read_bandwidth(int64_t bytes_per_thread, int threads, double seconds) {
  expect_above_zero("bytes_per_thread", bytes_per_thread);
  expect_above_zero("threads", threads);
  expect_above_zero("seconds", seconds);
  const Kernels& kernels = active_kernels();
  constexpr int64_t kStep = 8 * 64;  // of read_all with the widest vectors
  const int64_t bytes = (bytes_per_thread + kStep - 1) / kStep * kStep;
  std::vector<std::function<int64_t()>> works;
  for (int thread = 0; thread < threads; ++thread) {
    // Touched first, and so placed, by the thread that reads it.
    const std::shared_ptr<void> memory(std::aligned_alloc(kStep, static_cast<size_t>(bytes)),
                                       std::free);
    if (memory == nullptr) throw std::bad_alloc();
    works.emplace_back([&kernels, memory, bytes, touched = false]() mutable {
      if (!touched) std::memset(memory.get(), 1, static_cast<size_t>(bytes));
      touched = true;
      volatile int32_t sink;
      int32_t result;
      const int64_t done = kernels.read_all(static_cast<const char*>(memory.get()), bytes, &result);
      sink = result;
      (void)sink;
      return done;
    });
  }
  return sum_of_rates(works, seconds);
}

}  // namespace seq2seq_ext
