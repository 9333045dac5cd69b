// The runtime that executes CUDA kernels without a GPU: what right kernels compute on every
// schedule, what a launch refuses, and that kernels with planted defects fail. Those run in a
// process of their own, which this program starts with the defect's name.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda_cpu.h"

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED: %s (schedule %s)\n", what.c_str(), cuda_cpu::schedule().c_str());
  ++failures;
}

const char* const kSchedules[] = {"forward",  "reverse",  "random:1",
                                  "random:2", "random:3", "random:4"};

template <typename... Expected, typename... Actual>
cudaError_t launch(dim3 grid, dim3 threads, size_t shared_bytes, bool cooperative,
                   void (*kernel)(Expected...), Actual... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// ---- right kernels ----------------------------------------------------------------------------

// Every round, each thread reads what another wrote: a barrier before (1), and one after (2).
__global__ void __launch_bounds__(128)
    rotate(int* __restrict__ values /* blocks x 128 */, int rounds) {
  auto* tile = reinterpret_cast<int*>(cuda_cpu::dynamic_shared());
  const int n = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
  int mine = values[static_cast<int>(blockIdx.x) * n + me];
  for (int round = 0; round < rounds; ++round) {
    tile[me] = mine;
    if (cuda_cpu::barrier_active(1)) __syncthreads();
    mine = tile[(me + 33) % n] + 1;
    if (cuda_cpu::barrier_active(2)) __syncthreads();
  }
  values[static_cast<int>(blockIdx.x) * n + me] = mine;
}

bool rotates() {
  constexpr int kBlocks = 3, kThreads = 128, kRounds = 9;
  std::vector<int> values(kBlocks * kThreads);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(1000 * i);
  const std::vector<int> before = values;
  if (launch(kBlocks, kThreads, kThreads * sizeof(int), false, rotate, values.data(), kRounds) !=
      cudaSuccess)
    return false;
  bool right = true;
  for (int b = 0; b < kBlocks; ++b)
    for (int i = 0; i < kThreads; ++i)
      right = right && values[b * kThreads + i] ==
                           before[b * kThreads + (i + 33 * kRounds) % kThreads] + kRounds;
  return right;
}

// Within a warp, by static shared memory and a warp barrier.
__global__ void reverse_in_warps(int* values) {
  __shared__ int tile[64];
  const unsigned me = threadIdx.x;
  tile[me] = values[blockIdx.x * 64 + me];
  if (cuda_cpu::barrier_active(3)) __syncwarp();
  values[blockIdx.x * 64 + me] = tile[me ^ 31];
}

bool reverses() {
  std::vector<int> values(192);
  for (int i = 0; i < 192; ++i) values[static_cast<size_t>(i)] = i;
  if (launch(3, 64, 0, false, reverse_in_warps, values.data()) != cudaSuccess) return false;
  bool right = true;
  for (int i = 0; i < 192; ++i) right = right && values[static_cast<size_t>(i)] == (i ^ 31);
  return right;
}

__global__ void exchange_in_warps(int* wrong) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned all = 0xffffffffu;
  int bad = 0;
  for (int round = 0; round < 3; ++round) {
    bad += __shfl_sync(all, lane * 3, 7) != 21;
    bad += __shfl_sync(all, lane, 1, 8) != (lane & ~7) + 1;
    bad += __shfl_xor_sync(all, 1.5 * lane, 5) != 1.5 * (lane ^ 5);
    bad += __shfl_down_sync(all, lane, 3u) != (lane + 3 < 32 ? lane + 3 : lane);
    bad += __shfl_down_sync(all, lane, 3u, 16) != (lane % 16 + 3 < 16 ? lane + 3 : lane);
    bad += __shfl_up_sync(all, lane, 2u) != (lane < 2 ? lane : lane - 2);
    bad += __ballot_sync(all, lane % 3 == 0) != 0x49249249u;
    bad += __any_sync(all, lane == 5) != 1 || __any_sync(all, 0) != 0;
    bad += __all_sync(all, 1) != 1 || __all_sync(all, lane != 31) != 0;
    // Lanes part and meet again.
    if (lane < 16) {
      int sum = lane;
      for (int i = 8; i > 0; i /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, i);
      bad += sum != 120;
      __syncwarp(0x0000ffffu);
    } else {
      bad += __all_sync(0xffff0000u, lane >= 16) != 1;
    }
    struct Deposit {
      int lane, round;
      float more[8];
    } mine{lane, round, {}};
    const auto* others = static_cast<const unsigned char*>(cuda_cpu::gather(&mine, sizeof mine));
    for (int i = 0; i < 32; ++i) {
      const auto* other = reinterpret_cast<const Deposit*>(others + 64 * i);
      bad += other->lane != i || other->round != round;
    }
  }
  bad += __syncthreads_count(lane == 0) != static_cast<int>(blockDim.x / 32);
  bad += __syncthreads_or(threadIdx.x == 40) != 1 || __syncthreads_or(0) != 0;
  bad += __syncthreads_and(threadIdx.x != 40) != 0 || __syncthreads_and(1) != 1;
  wrong[threadIdx.x] = bad;
}

// Blocks hand a word round a ring, each adding 1, while the last warp of each waits at a barrier.
__global__ void pass_round(unsigned* words /* blocks, all ones */, int laps, int* wrong) {
  auto* received = reinterpret_cast<unsigned*>(cuda_cpu::dynamic_shared());
  const unsigned b = blockIdx.x, n = gridDim.x;
  for (unsigned lap = 0; lap < static_cast<unsigned>(laps); ++lap) {
    if (threadIdx.x == 0) {
      const unsigned expected = lap * n + b;  // what the block before stored
      if (expected > 0)
        while (cuda_cpu::barrier_active(4) &&
               __atomic_load_n(&words[(b + n - 1) % n], __ATOMIC_RELAXED) != expected - 1)
          __nanosleep(20);
      __atomic_store_n(&words[b], expected, __ATOMIC_RELAXED);
      *received = expected;
    }
    __syncthreads();
    if (*received != lap * n + b) *wrong = 1;
    __syncthreads();
  }
}

__global__ void look_around(unsigned* seen) {
  const unsigned* shared = reinterpret_cast<const unsigned*>(cuda_cpu::dynamic_shared());
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  if (shared[thread] == ~0u) seen[block * threads + thread] += 1;
}

__global__ void many_threads(long long* sum, const int addend, const __half half) {
  atomicAdd(sum, addend + static_cast<int>(__half2float(half)));
}

__global__ void nothing() {}

void right_kernels_are_right() {
  cuda_cpu::forget_barriers();
  for (const char* schedule : kSchedules) {
    cuda_cpu::set_schedule(schedule);
    expect(rotates(), "block barriers");
    expect(reverses(), "warp barriers and static shared memory");

    std::vector<int> wrong(96);
    expect(launch(2, 96, 0, false, nothing) == cudaSuccess, "an empty kernel");
    expect(launch(1, 96, 0, false, exchange_in_warps, wrong.data()) == cudaSuccess, "launch");
    for (int bad : wrong) expect(bad == 0, "warp collectives");

    std::vector<unsigned> words(6, ~0u);
    int bad = 0;
    expect(launch(6, 64, 4, true, pass_round, words.data(), 5, &bad) == cudaSuccess, "launch");
    expect(bad == 0 && words[5] == 29, "blocks that wait for one another");

    std::vector<unsigned> seen(2 * 3 * 2 * 48);
    expect(launch(dim3(2, 3, 2), dim3(4, 6, 2), 48 * 4, false, look_around, seen.data()) ==
               cudaSuccess,
           "launch");
    for (unsigned times : seen) expect(times == 1, "every thread of every block runs once");
  }
  expect(cuda_cpu::barriers_seen() == std::set<int>({1, 2, 3, 4}), "guards that were met");
  cuda_cpu::set_schedule("forward");

  long long sum = 0;
#if defined(__SANITIZE_THREAD__)
  const int blocks = 2;  // as many fibers as it takes
#else
  const int blocks = 16;
#endif
  expect(
      launch(blocks, 512, 0, true, many_threads, &sum, short{2}, __float2half(3.f)) == cudaSuccess,
      "launch");
  expect(sum == 5ll * 512 * blocks, "512 threads in each of several blocks");
}

// ---- launches ---------------------------------------------------------------------------------

void launches_are_checked() {
  const auto refused = [](cudaError_t expected, dim3 grid, dim3 threads, size_t shared_bytes,
                          bool cooperative, const char* what) {
    const cudaError_t error = launch(grid, threads, shared_bytes, cooperative, nothing);
    expect(error == expected, std::string(what) + ": " + cudaGetErrorName(error));
    expect(cudaPeekAtLastError() == expected && cudaGetLastError() == expected, what);
    expect(cudaGetLastError() == cudaSuccess, "errors are told once");
  };
  refused(cudaErrorInvalidConfiguration, 0, 32, 0, false, "no block");
  refused(cudaErrorInvalidConfiguration, 1, 0, 0, false, "no thread");
  refused(cudaErrorInvalidConfiguration, 1, 1025, 0, false, "too many threads");
  refused(cudaErrorInvalidConfiguration, 1, dim3(32, 32, 2), 0, false, "too many threads in all");
  refused(cudaErrorInvalidConfiguration, 1, dim3(1, 1, 65), 0, false, "too many threads along z");
  refused(cudaErrorInvalidConfiguration, dim3(1, 65536), 32, 0, false, "too many blocks along y");
  refused(cudaErrorInvalidValue, 1, 32, (48 << 10) + 1, false, "shared memory not asked for");
  expect(launch(1, 32, 48 << 10, false, nothing) == cudaSuccess, "48 KiB need no asking");

  int multiprocessors = 0, opt_in = 0, blocks = 0;
  const auto use = [&](const cuda_cpu::Device& device) {
    cuda_cpu::pretend(device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
    cudaDeviceGetAttribute(&opt_in, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  };
  use(cuda_cpu::Device());
  const auto ask = [](int bytes) {
    return cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  expect(ask(opt_in + 1) == cudaErrorInvalidValue, "asking for more than there is");
  expect(cudaGetLastError() == cudaErrorInvalidValue, "asking for more than there is");
  expect(ask(opt_in) == cudaSuccess, "asking for all");
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 32, opt_in);
  expect(blocks == 1, "one block takes all shared memory");
  expect(launch(multiprocessors, 32, opt_in, true, nothing) == cudaSuccess, "a block each");
  refused(cudaErrorCooperativeLaunchTooLarge, multiprocessors + 1, 32, opt_in, true,
          "more blocks than fit at a time");
  expect(launch(multiprocessors + 1, 32, opt_in, false, nothing) == cudaSuccess,
         "ordinary blocks may wait");
  refused(cudaErrorInvalidValue, 1, 32, opt_in + 1, false, "more shared memory than asked for");

  for (const auto& [device, at_512] :
       {std::pair(cuda_cpu::a100(), 2), {cuda_cpu::h100(), 2}, {cuda_cpu::rtx4090(), 2}}) {
    use(device);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 512, 0);
    expect(blocks == at_512, std::string("64 registers, 512 threads: ") + device.name);
    expect(ask(opt_in) == cudaSuccess && ask(opt_in + 1) != cudaSuccess, device.name);
  }
  cuda_cpu::Device small;
  small.cooperative = false;
  use(small);
  cudaGetLastError();
  refused(cudaErrorNotSupported, 1, 32, 0, true, "a device without cooperative launches");
  small.registers_per_thread = 200;
  use(small);
  refused(cudaErrorLaunchOutOfResources, 1, 512, 0, false, "too many registers");
  use(cuda_cpu::Device());
  ask(48 << 10);
}

void halves_are_rounded_once() {
  // 1 + 2^-10 squared is 1 + 2^-9 + 2^-20: less 1 + 2^-9, only 2^-20 remains.
  const __half a = __float2half(1.f + 0x1p-10f), c = __float2half(-1.f - 0x1p-9f);
  expect(__half2float(__hfma(a, a, c)) == 0x1p-20f, "half");
  expect(__half2float(__high2half(__hfma2(__halves2half2(c, a), __halves2half2(c, a),
                                          __halves2half2(c, c)))) == 0x1p-20f,
         "half2");
  const __nv_bfloat16 b = __float2bfloat16(1.f + 0x1p-7f), d = __float2bfloat16(-1.f - 0x1p-6f);
  expect(__bfloat162float(__hfma(b, b, d)) == 0x1p-14f, "bfloat16");
}

// ---- planted defects --------------------------------------------------------------------------

// Fails by wrong values on some schedule, or by what TSan finds.
int without(int guard) {
  cuda_cpu::set_mutant(guard);
  bool right = true;
  for (const char* schedule : kSchedules) {
    cuda_cpu::set_schedule(schedule);
    right = right && rotates() && reverses();
  }
  std::fprintf(stderr, right ? "right values\n" : "wrong values\n");
  return right ? 0 : 1;
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
template <unsigned kThread>
__global__ void barrier_after_end() {
  if (threadIdx.x == kThread) return;
  __syncthreads();
}
__global__ void barrier_for_some() {
  if (threadIdx.x < 32) __syncthreads();
  __syncwarp();
}
__global__ void masks_disagree() {
  const unsigned lane = threadIdx.x % 32;
  __shfl_sync(lane < 16 ? 0xffffffffu : 0xffffff00u, 1, 20);
}
__global__ void mask_lacks_caller() { __any_sync(0x7fffffffu, 1); }
__global__ void lane_has_ended() {
  if (threadIdx.x % 32 == 3) return;
  __syncwarp();
}
__global__ void different_places() {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    __shfl_sync(0xffffffffu, 1, 0);
  }
}
__global__ void lanes_are_missing() { __syncwarp(); }
__global__ void half_a_warp_waits() {
  if (threadIdx.x < 16) {
    __shfl_sync(0xffffffffu, 1, 0);
  } else {
    __syncthreads();
  }
}
__global__ void waits_for_ever(unsigned* word) {
  while (__atomic_load_n(word, __ATOMIC_RELAXED) == 0) {
    __syncwarp();
    __nanosleep(20);
  }
}
#if defined(__SANITIZE_ADDRESS__)
__global__ void overruns() { cuda_cpu::dynamic_shared()[4 * blockDim.x + threadIdx.x] = 1; }
#endif
#if defined(__SANITIZE_THREAD__)
__global__ void blocks_collide(int* value) { *value = static_cast<int>(blockIdx.x); }
#endif

struct Defect {
  const char* name;
  const char* message;  // of which its output has to have this
  int (*run)();
};

template <void (*kKernel)()>
int run_plain() {
  return launch(1, 64, 256, false, kKernel) == cudaSuccess ? 0 : 2;
}

#if defined(__SANITIZE_THREAD__)
constexpr const char* kRace = "data race";
#else
constexpr const char* kRace = "wrong values";
#endif

const Defect kDefects[] = {
    {"no barrier before reading", kRace, [] { return without(1); }},
    {"no barrier after reading", kRace, [] { return without(2); }},
    {"no warp barrier", kRace, [] { return without(3); }},
    {"divergent barrier", "but others wait in __syncthreads", run_plain<divergent_barrier>},
    {"barrier after a thread's end", "threads of the block have ended",
     run_plain<barrier_after_end<0>>},
    {"a thread's end before a barrier", "ends while others wait", run_plain<barrier_after_end<40>>},
    {"barrier for some threads", "while others wait in __syncthreads", run_plain<barrier_for_some>},
    {"masks disagree", "waits with 0x", run_plain<masks_disagree>},
    {"mask lacks the caller", "lacks the calling lane 31", run_plain<mask_lacks_caller>},
    {"a lane has ended", "ends while lane 0 waits for it", run_plain<lane_has_ended>},
    {"lanes at different places", "waits in __s", run_plain<different_places>},
    {"lanes that never were", "names lanes that have ended or never were",
     [] { return launch(1, 40, 0, false, lanes_are_missing) == cudaSuccess ? 0 : 2; }},
    {"deadlock", "lanes 0-15 waits in __shfl_sync", run_plain<half_a_warp_waits>},
    {"a wait without end", "nothing but polling",
     [] {
       unsigned word = 0;
       setenv("CUDA_CPU_TIMEOUT", "1", 1);
       return launch(2, 64, 0, true, waits_for_ever, &word) == cudaSuccess ? 0 : 2;
     }},
#if defined(__SANITIZE_ADDRESS__)
    {"overrun of shared memory", "heap-buffer-overflow", run_plain<overruns>},
#endif
#if defined(__SANITIZE_THREAD__)
    {"blocks write the same", "data race",
     [] {
       int value = 0;
       return launch(2, 1, 0, false, blocks_collide, &value) == cudaSuccess ? 0 : 2;
     }},
#endif
};

void planted_defects_are_found() {
  for (const Defect& defect : kDefects) {
    int ends[2];
    if (pipe(ends) != 0) std::abort();
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[1], 2);
      close(ends[0]);
      setenv("CUDA_CPU_TIMEOUT", "1", 1);
      execl("/proc/self/exe", "test_cuda_cpu", defect.name, nullptr);
      _exit(0);
    }
    close(ends[1]);
    std::string output;
    char piece[4096];
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;)
      output.append(piece, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    expect(status != 0, std::string("a planted defect was not found: ") + defect.name);
    const bool told = output.find(defect.message) != std::string::npos;
    expect(told, std::string(defect.name) + ": '" + defect.message + "' is not in\n" + output);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) {
    for (const Defect& defect : kDefects)
      if (defect.name == std::string(arguments[1])) return defect.run();
    return 0;
  }
  right_kernels_are_right();
  launches_are_checked();
  halves_are_rounded_once();
  planted_defects_are_found();
  if (failures == 0) std::printf("test_cuda_cpu: all passed\n");
  return failures != 0;
}
