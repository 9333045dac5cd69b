#include "contention.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace seq2seq_ext {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMostStrikes = 5;  // 2^4 = 16 ms between tries

// Calls of several Python threads share these; a lost update costs one more try.
std::atomic<int> strikes{0};             // disturbed calls, less undisturbed ones
std::atomic<int64_t> cautious_until{0};  // on Clock

// A forked process has none of its parent's threads, and OpenMP's pool waits for those for ever.
std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

int64_t now() { return Clock::now().time_since_epoch().count(); }

}  // namespace

int advised_threads(int threads, double seconds) {
  if (forked.load(std::memory_order_relaxed)) return 1;
  const int count = strikes.load(std::memory_order_relaxed);
  if (count == 0 || threads == 1) return threads;
  const auto length = static_cast<int64_t>(seconds * Clock::period::den / Clock::period::num);
  if (now() + 2 * length >= cautious_until.load(std::memory_order_relaxed)) return threads;
  return std::max(1, threads >> std::min(count, 8));
}

void report_team(bool disturbed) {
  const int count = strikes.load(std::memory_order_relaxed);
  if (disturbed) {
    const int more = std::min(count + 1, kMostStrikes);
    const auto pause = std::chrono::milliseconds(1 << (more - 1));
    cautious_until.store(now() + std::chrono::duration_cast<Clock::duration>(pause).count(),
                         std::memory_order_relaxed);
    strikes.store(more, std::memory_order_relaxed);
  } else if (count > 0) {
    strikes.store(count - 1, std::memory_order_relaxed);
  }
}

void Cores::take_own() {
#if defined(__linux__)
  const auto bit = [](int core) { return uint64_t{1} << (core % 64); };
  const int core = sched_getcpu();
  if (core < 0 || !(taken_.fetch_or(bit(core), std::memory_order_relaxed) & bit(core))) return;
  cpu_set_t allowed, free;
  CPU_ZERO(&free);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const uint64_t taken = taken_.load(std::memory_order_relaxed);
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &allowed) && !(taken & bit(i))) CPU_SET(i, &free);
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
  const int now = sched_getcpu();
  if (now >= 0) taken_.fetch_or(bit(now), std::memory_order_relaxed);
#endif
}

bool was_preempted() {
#if defined(RUSAGE_THREAD)
  thread_local long last = -1;
  rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return false;
  const bool more = last >= 0 && usage.ru_nivcsw > last;
  last = usage.ru_nivcsw;
  return more;
#else
  return false;
#endif
}

}  // namespace seq2seq_ext
