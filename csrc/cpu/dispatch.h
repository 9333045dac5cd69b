// Which instruction set runs. One is chosen when the library is loaded: the one that
// SEQ2SEQ_EXT_ISA names, else the widest that the CPU has.
#pragma once

#include <string>
#include <vector>

namespace seq2seq_ext {

struct Kernels;

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

// The table in use. Throws std::runtime_error where SEQ2SEQ_EXT_ISA names one that this CPU lacks.
const Kernels& active_kernels();

// Name of the instruction set in use: "baseline", "avx2", "avx512" or "neon".
const char* cpu_isa();

// All that this CPU runs, narrowest first.
std::vector<std::string> available_cpu_isas();

// The table of one of them. Throws std::invalid_argument for any other name.
const Kernels& kernels_for(const std::string& name);

// Uses another instruction set from now on. Throws std::invalid_argument where this CPU lacks it.
void set_cpu_isa(const std::string& name);

}  // namespace seq2seq_ext
