// Fibers: what the sanitizers are told of them, stacks, and the switch from one to another.
//
// The runtime is compiled without sanitizers and tells them itself what they have to know: ASan
// which stack is in use, TSan which fiber runs, and the few places where one thread's memory is
// ordered before another's: launch and end, block barriers, warp barriers. Nothing else in it may
// order anything in TSan's eyes, or a barrier that a kernel lacks would not show: hence no mutex,
// no memcpy and no allocation (all are intercepted) while fibers run.
#pragma once

#include <cstddef>

// Null where the sanitizer is not linked.
#define SANITIZER_FUNCTION extern "C" [[gnu::weak, gnu::visibility("default")]]
SANITIZER_FUNCTION void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom,
                                                       size_t bytes);
SANITIZER_FUNCTION void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom,
                                                        size_t* bytes);
SANITIZER_FUNCTION void* __tsan_get_current_fiber();
SANITIZER_FUNCTION void* __tsan_create_fiber(unsigned flags);
SANITIZER_FUNCTION void __tsan_switch_to_fiber(void* fiber, unsigned flags);
SANITIZER_FUNCTION void __tsan_acquire(void* address);
SANITIZER_FUNCTION void __tsan_release(void* address);

// Saves the callee's registers and the stack pointer, and goes on where another did so.
extern "C" void cuda_cpu_switch(void** save, void* load);

namespace cuda_cpu {

// What is stored before release() is there for whoever calls acquire() after it. A token has a word
// of its own, TSan's unit.
struct Token {
  alignas(8) char address;
};

inline void acquire(Token& token) {
  if (__tsan_acquire) __tsan_acquire(&token);
}
inline void release(Token& token) {
  if (__tsan_release) __tsan_release(&token);
}

// What a fiber needs, kept for the next one. To TSan a stack that two fibers use one after the
// other is no race, since whoever launches is ordered after the first and before the second.
struct Context {
  unsigned char* stack;
  void* tsan;
};

size_t stack_bytes();
Context take_context();
void give_back(const Context& context);

// For cuda_cpu_switch, so that `enter` runs on the stack.
void* first_stack_pointer(const Context& context, void (*enter)());

}  // namespace cuda_cpu
