// Whether other processes want our cores. A team whose members lose theirs waits for them at every
// step, and may take longer than half of it alone; after such a call the next ones use fewer
// threads for a while, up to some tens of milliseconds, and then try again.
#pragma once

namespace seq2seq_ext {

// How many of `threads` to use now for a call of that length: that many, or a half, a quarter, ...
// of them. A call that outlasts the caution gets all: it would pay for it too long.
int advised_threads(int threads, double seconds);

// Of a call on several threads: whether it lost time because a thread had no core.
void report_team(bool disturbed);

// Whether this thread was taken off its core since it asked last (or first: false).
bool was_preempted();

}  // namespace seq2seq_ext
