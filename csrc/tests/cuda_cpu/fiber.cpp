// Stacks, and the switch in assembly: swapcontext() would ask the kernel for the signal mask each
// time.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#if defined(__x86_64__)
asm(R"(
.pushsection .text
.p2align 4
.hidden cuda_cpu_switch
.globl cuda_cpu_switch
.type cuda_cpu_switch, @function
cuda_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_cpu_switch, .-cuda_cpu_switch
.popsection
)");
#elif defined(__aarch64__)
asm(R"(
.pushsection .text
.p2align 4
.hidden cuda_cpu_switch
.globl cuda_cpu_switch
.type cuda_cpu_switch, %function
cuda_cpu_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size cuda_cpu_switch, .-cuda_cpu_switch
.popsection
)");
#else
#error "cuda_cpu switches fibers on x86-64 and aarch64 only"
#endif

namespace cuda_cpu {
namespace {

std::mutex mutex;

std::vector<Context>& kept() {
  static auto& all =
      *new std::vector<Context>;  // never destroyed: nobody waits for the last kernel
  return all;
}

}  // namespace

size_t stack_bytes() {
  return __sanitizer_start_switch_fiber || __tsan_create_fiber ? 256 << 10 : 64 << 10;
}

Context take_context() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!kept().empty()) {
      const Context context = kept().back();
      kept().pop_back();
      return context;
    }
  }
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, stack_bytes() + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  // The lowest page is inaccessible: a stack that overflows does not write into another.
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
  return {static_cast<unsigned char*>(memory) + page,
          __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr};
}

void give_back(const Context& context) {
  const std::lock_guard<std::mutex> lock(mutex);
  kept().push_back(context);
}

void* first_stack_pointer(const Context& context, void (*enter)()) {
  // The registers that cuda_cpu_switch pops, of which only the frame pointer matters (null: the
  // outermost frame), and the address to which it returns.
  auto* top = reinterpret_cast<void**>(context.stack + stack_bytes());
#if defined(__x86_64__)
  constexpr int kWords = 8, kReturn = 6;  // leaves the stack pointer 8 modulo 16, as a call does
#else
  constexpr int kWords = 20, kReturn = 1;
#endif
  top -= kWords;
  std::memset(top, 0, kWords * sizeof *top);
  top[kReturn] = reinterpret_cast<void*>(enter);
  return top;
}

}  // namespace cuda_cpu
