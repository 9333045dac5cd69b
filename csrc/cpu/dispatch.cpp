#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace seq2seq_ext {
namespace {

std::vector<const Kernels*> available() {
#if defined(__x86_64__)
  std::vector<const Kernels*> tables{&baseline::kernels};
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    tables.push_back(&avx2::kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma")) {
    tables.push_back(&avx512::kernels);
  }
  return tables;
#elif defined(__aarch64__)
  return {&neon::kernels};  // part of every 64-bit Arm
#else
  return {&baseline::kernels};
#endif
}

// Null until the first question.
std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels_for(const std::string& name) {
  std::string known;
  for (const Kernels* table : available()) {
    if (name == table->name) return *table;
    known += (known.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is not one that this CPU runs; expected one of: " + known);
}

const Kernels& active_kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (table == nullptr) {
    const char* forced = std::getenv("SEQ2SEQ_EXT_ISA");
    if (forced != nullptr && *forced != '\0') {
      try {
        table = &kernels_for(forced);
      } catch (const std::invalid_argument& error) {
        throw std::runtime_error(std::string("SEQ2SEQ_EXT_ISA: ") + error.what());
      }
    } else {
      table = available().back();
    }
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

const char* cpu_isa() { return active_kernels().name; }

std::vector<std::string> available_cpu_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : available()) names.emplace_back(table->name);
  return names;
}

void set_cpu_isa(const std::string& name) {
  chosen.store(&kernels_for(name), std::memory_order_release);
}

}  // namespace seq2seq_ext
