// CUDA kernels without a GPU: the interface of a small runtime that runs every thread of a launch
// as a fiber, so that the very same .cu files are executed, checked and put under sanitizers on a
// CPU.
//
// The headers beside this one stand in for the toolkit's cuda_runtime.h, cuda_fp16.h and
// cuda_bf16.h. A block is a set of fibers on one OS thread, which change over only inside
// collectives, in
// __nanosleep and at their end. Blocks of a cooperative launch run at the same time, one OS thread
// each; those of any other launch run one after the other, since nothing may depend on another.
// Launches return when the kernel has ended.
//
// A collective that is used wrongly, a deadlock, or a wait without end prints what every thread is
// doing and aborts. What the environment sets, the functions below change:
//   CUDA_CPU_SCHEDULE   forward, reverse or random:SEED: which thread goes on
//   CUDA_CPU_MUTANT     number of the guard that is out of force
//   CUDA_CPU_OCCUPIED   blocks of other processes, which a cooperative launch finds on the device
//   CUDA_CPU_TIMEOUT    seconds that all blocks may do nothing but poll (60)
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <source_location>
#include <string>

namespace cuda_cpu {

// Where in the sources a collective is called: all threads that take part have to stand there.
using Site = std::source_location;

// ---- for kernels ----------------------------------------------------------------------------

// The block's dynamic shared memory: exactly as large as the launch says, filled with 0xFF, of
// which a floating-point number is a NaN.
unsigned char* dynamic_shared();

// A collective of a whole warp: every lane hands in `bytes` (at most 64) and gets the 32 that were
// handed in, 64 bytes apart, valid until its next collective.
const void* gather(const void* mine, size_t bytes, Site site = Site::current());

// Whether the guard of this number (0 to 4095) is in force: all are but the mutant.
bool barrier_active(int number);

// ---- for tests ------------------------------------------------------------------------------

int mutant();
void set_mutant(int number);  // -1: none
std::set<int> barriers_seen();
void forget_barriers();

void set_timeout(double seconds);

// The order in which threads run whenever there is a choice, and ordinary blocks one after another.
//   forward, reverse   lanes and warps in the order of their numbers, or the opposite
//   random:SEED        the ready warp of the highest priority, priorities drawn anew now and then;
//                      lanes at random. So a warp runs far ahead of the others
// Throws std::invalid_argument for any other name.
void set_schedule(const std::string& name);
std::string schedule();

// The device that launches are checked against. Registers are not known here, so every kernel takes
// as many as this says.
struct Device {
  const char* name = "small";
  int major = 8, minor = 6;
  int multiprocessors = 8;
  int threads_per_multiprocessor = 1536, blocks_per_multiprocessor = 16;
  int shared_per_multiprocessor = 100 << 10, shared_per_block_opt_in = 99 << 10;
  int registers_per_multiprocessor = 65536, registers_per_thread = 64;
  int l2_bytes = 2 << 20;
  int clock_khz = 1'500'000;
  bool cooperative = true;
};

Device a100();
Device h100();
Device rtx4090();

void pretend(const Device& device);
Device pretended();

// ---- for the shadow headers -----------------------------------------------------------------

// The kernel with its arguments, to be called by every thread.
using Body = void (*)(const void* arguments);
cudaError_t launch(const cudaLaunchConfig_t* config, const void* kernel, Body body,
                   const void* arguments);
// The same after every check.
void run(dim3 grid, dim3 threads, size_t shared_bytes, bool cooperative, Body body,
         const void* arguments);

int sync_threads(const char* name, int predicate, Site site);  // how many predicates are not 0
void sync_warp(unsigned mask, Site site);
unsigned vote(const char* name, unsigned mask, bool predicate, Site site);  // lanes where it is so
uint64_t shuffle(const char* name, unsigned mask, uint64_t value, unsigned source, Site site);
unsigned lane();
void sleep(Site site);
void fence();
long long clock();
[[noreturn]] void trap(Site site);

}  // namespace cuda_cpu

// What a kernel knows of its place: written whenever another fiber goes on, constant to each.
extern thread_local constinit uint3 threadIdx;
extern thread_local constinit uint3 blockIdx;
extern thread_local constinit dim3 blockDim;
extern thread_local constinit dim3 gridDim;
inline constexpr int warpSize = 32;
