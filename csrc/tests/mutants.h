// Takes out one barrier at a time, and tells whether a test notices.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "cuda_cpu.h"

namespace seq2seq_ext {

// Whether somebody notices that a barrier is missing: run() says no, or the child dies.
template <typename Run>
bool is_caught(int mutant, const Run& run) {
  std::fflush(stdout);  // or the child prints it once more
  const pid_t child = fork();
  if (child == 0) {
    alarm(120);
    if (std::freopen("/dev/null", "w", stdout) == nullptr) _exit(0);
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    cuda_cpu::set_mutant(mutant);
    _exit(run() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

// For main: run() meets every barrier and tells whether all was right.
template <typename Run>
int check_mutants(const Run& run) {
  if (!run()) return 1;
  int survived = 0;
  for (const int mutant : cuda_cpu::barriers_seen()) {
    const bool caught = is_caught(mutant, run);
    std::printf("barrier %d taken out: %s\n", mutant, caught ? "caught" : "NOBODY NOTICED");
    survived += !caught;
  }
  return survived > 0;
}

}  // namespace seq2seq_ext
