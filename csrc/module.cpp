// The control surface in Python: what was built, and which instruction set runs.
//
// No tensor passes through here. The ops reach Python through torch's dispatcher (ops.cpp), so this
// file includes neither torch's headers nor a kernel's, and a change of torch leaves it alone.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "build_config.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/limits.h"
#include "cpu/plan.h"
#include "cuda/plan.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

py::dict build_info() {
  const std::vector<std::string> architectures{SEQ2SEQ_EXT_CUDA_ARCHITECTURES};
  const std::string toolkit = SEQ2SEQ_EXT_CUDA_VERSION;
  const bool cuda = !architectures.empty();
  return py::dict("version"_a = SEQ2SEQ_EXT_VERSION,                            //
                  "compiler"_a = SEQ2SEQ_EXT_COMPILER,                          //
                  "flags"_a = SEQ2SEQ_EXT_FLAGS,                                //
                  "build_type"_a = SEQ2SEQ_EXT_BUILD_TYPE,                      //
                  "processor"_a = SEQ2SEQ_EXT_PROCESSOR,                        //
                  "torch_version"_a = SEQ2SEQ_EXT_TORCH_VERSION,                //
                  "torch_target_version"_a = SEQ2SEQ_EXT_TORCH_TARGET_VERSION,  //
                  "cuda"_a = cuda ? std::optional(architectures) : std::nullopt,
                  "cuda_version"_a = cuda ? std::optional(toolkit) : std::nullopt);
}

// (threads, split, seconds, chosen) of every layout that can run a problem.
using PlanTuple = std::tuple<int, std::string, double, bool>;

std::vector<PlanTuple> plans(int cell, bool backward, int packed, int64_t time_steps,
                             int64_t batch_size, int64_t steps, int64_t input_size,
                             int64_t hidden_size, int64_t output_size, int64_t num_layers,
                             int64_t num_directions, size_t element_size, int max_threads) {
  using namespace seq2seq_ext;
  const Problem problem{static_cast<Cell>(cell),
                        backward,
                        packed < 0 ? std::nullopt : std::optional(static_cast<WeightType>(packed)),
                        time_steps,
                        batch_size,
                        steps,
                        input_size,
                        hidden_size,
                        output_size,
                        num_layers,
                        num_directions,
                        element_size,
                        active_kernels().vector_bytes};
  const Plan chosen = make_plan(problem, max_threads);
  std::vector<PlanTuple> all;
  for (const Plan& plan : possible_plans(problem, max_threads)) {
    all.emplace_back(plan.threads, split_name(plan.split), plan.seconds,
                     plan.threads == chosen.threads && plan.split == chosen.split);
  }
  return all;
}

// ---- the CUDA engine's plans
// ----------------------------------------------------------------------

namespace cuda = seq2seq_ext::cuda;

py::dict as_dict(const cuda::Properties& p) {
  return py::dict("capability"_a = p.capability, "multiprocessors"_a = p.multiprocessors,
                  "registers_per_multiprocessor"_a = p.registers_per_multiprocessor,
                  "shared_per_multiprocessor"_a = p.shared_per_multiprocessor,
                  "shared_per_block"_a = p.shared_per_block,
                  "threads_per_multiprocessor"_a = p.threads_per_multiprocessor,
                  "cooperative"_a = p.cooperative);
}

cuda::Properties as_properties(const py::dict& d) {
  return {d["capability"].cast<int>(),
          d["multiprocessors"].cast<int>(),
          d["registers_per_multiprocessor"].cast<int>(),
          d["shared_per_multiprocessor"].cast<int>(),
          d["shared_per_block"].cast<int>(),
          d["threads_per_multiprocessor"].cast<int>(),
          d["cooperative"].cast<bool>()};
}

py::dict cuda_devices() {
  return py::dict("a100"_a = as_dict(cuda::a100()), "h100"_a = as_dict(cuda::h100()),
                  "rtx4090"_a = as_dict(cuda::rtx4090()));
}

// way, tiles, slices, groups and rows, as the operator force_cuda_plan takes them.
using ForcedTuple = std::tuple<int, int, int, int, int>;

cuda::Forced as_forced(const ForcedTuple& given) {
  const auto& [way, tiles, slices, groups, rows] = given;
  const cuda::Forced forced{way == 1, way == 2, tiles, slices, groups, rows};
  cuda::check(forced);
  return forced;
}

py::dict cuda_plan(const py::dict& properties, int cell, int number, bool tf32, bool backward,
                   int64_t time_steps, int64_t batch_size, int64_t hidden_size, int64_t output_size,
                   int64_t num_directions, const ForcedTuple& forced) {
  const cuda::Problem problem{static_cast<seq2seq_ext::Cell>(cell),
                              static_cast<cuda::Number>(number),
                              tf32,
                              backward,
                              time_steps,
                              batch_size,
                              hidden_size,
                              output_size,
                              num_directions};
  const cuda::Plan plan = cuda::make_plan(problem, as_properties(properties), as_forced(forced));
  cuda::Layout l{};
  cuda::WeightBytes weights{};
  if (plan.persistent) {
    l = plan.layout;
    weights = cuda::weight_bytes(problem, l, plan.tensor);
  }
  return py::dict("persistent"_a = plan.persistent,                    //
                  "why"_a = plan.why == nullptr ? "" : plan.why,       //
                  "tensor"_a = plan.tensor,                            //
                  "tiles"_a = l.tiles,                                 //
                  "slices"_a = l.slices,                               //
                  "parts"_a = l.parts,                                 //
                  "groups"_a = l.groups,                               //
                  "group_rows"_a = l.group_rows,                       //
                  "launches"_a = plan.persistent ? plan.launches : 0,  //
                  "blocks"_a = l.blocks(),                             //
                  "threads"_a = l.threads(),                           //
                  "shared_bytes"_a = l.shared_bytes,                   //
                  "weights_in_registers"_a = weights.registers,        //
                  "weights_in_shared"_a = weights.shared);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Control surface of the compiled extension; the ops are under torch.ops.seq2seq_ext.";
  m.attr("__version__") = SEQ2SEQ_EXT_VERSION;

  m.def(
      "build_info", &build_info,
      "What this binary is: version, compiler, flags, build_type, processor, torch_version (whose "
      "headers it was built with), torch_target_version (the oldest torch it loads with), cuda "
      "(the architectures of the CUDA library, None in a CPU build), cuda_version (the toolkit's, "
      "likewise).");

  m.def("cpu_isa", &seq2seq_ext::cpu_isa, "Name of the instruction set that the kernels run on.");

  m.def("available_cpu_isas", &seq2seq_ext::available_cpu_isas,
        "Names of the instruction sets that this binary holds and this CPU runs, widest last.");

  m.def("set_cpu_isa", &seq2seq_ext::set_cpu_isa, "name"_a,
        "Makes the kernels run on the named instruction set from the next call on.\n\n"
        "Raises ValueError or RuntimeError where this binary or this CPU lacks it.");

  m.def("plans", &plans, "cell"_a, "backward"_a, "packed"_a, "time_steps"_a, "batch_size"_a,
        "steps"_a, "input_size"_a, "hidden_size"_a, "output_size"_a, "num_layers"_a,
        "num_directions"_a, "element_size"_a, "max_threads"_a,
        "The layouts that can run a problem: (threads, split, expected seconds, chosen) each. "
        "packed: "
        "-1 where a call packs its weights, 0 to 2 where they are packed, in full, as bfloat16 or "
        "as int8.");

  m.def("set_plan", &seq2seq_ext::set_plan, "text"_a,
        "Forces a layout from the next call on; an empty text forces nothing.\n\n"
        "Raises ValueError where the text is none of threads=N, split=rows|units|layers.");

  m.def("cuda_devices", &cuda_devices,
        "Properties of GPUs that need not be at hand, by their names.");

  m.def("cuda_plan", &cuda_plan, "properties"_a, "cell"_a, "number"_a, "tf32"_a, "backward"_a,
        "time_steps"_a, "batch_size"_a, "hidden_size"_a, "output_size"_a, "num_directions"_a,
        "forced"_a,
        "How the CUDA engine lays a layer on a GPU with these properties. number: 0 to 3, float16, "
        "bfloat16, float32, float64. forced: as check_cuda_plan's.");

  m.def(
      "check_cuda_plan", [](const ForcedTuple& forced) { as_forced(forced); }, "forced"_a,
      "Raises ValueError where no block can be so: (way, tiles, slices, groups, rows), way 0 to "
      "2, the model's, general, persistent; 0 leaves a number to the model.");

  m.def("measure_fma_peak", &seq2seq_ext::measure_fma_peak, "threads"_a, "seconds"_a,
        py::call_guard<py::gil_scoped_release>(),
        "Float32 operations a second of multiply-adds on registers, all threads together, in the "
        "vectors of the instruction set in use.");

  m.def("measure_read_bandwidth", &seq2seq_ext::measure_read_bandwidth, "bytes_per_thread"_a,
        "threads"_a, "seconds"_a, py::call_guard<py::gil_scoped_release>(),
        "Bytes a second that all threads together read, each from a buffer of its own.");
}
