// Whether other processes want our cores. A team whose members lose theirs waits for them at every
// step, and may take longer than half of it alone; after such a call the next ones use fewer
// threads for some milliseconds, and then try again.
#pragma once

#include <atomic>
#include <cstdint>

namespace seq2seq_ext {

// How many of `threads` to use now for a call of that length: that many, or a half, a quarter, ...
// of them. A call that outlasts the caution gets all: it would pay for it too long. In a forked
// process always 1.
int advised_threads(int threads, double seconds);

// Of a call on several threads: whether it lost time because a thread had no core.
void report_team(bool disturbed);

// The cores that the members of a team run on. Two threads that wait for each other asleep are
// never ready to run at the same time, so that the system sees no reason to part them when they
// wake up on one core; the second to come moves to another by itself. The thread may run where it
// might before.
class Cores {
 public:
  void take_own();

 private:
  std::atomic<uint64_t> taken_{0};  // bit i: a core whose number is i modulo 64
};

// Whether this thread was taken off its core since it asked last (or first: false).
bool was_preempted();

}  // namespace seq2seq_ext
