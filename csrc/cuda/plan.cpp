#include "plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace seq2seq_ext::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a product of the recurrence multiplies: G kinds of weight rows, vectors of `features`.
struct Product {
  int G;
  int64_t features;

  explicit Product(const Problem& p) {
    const int gates = static_cast<int>(num_gates(p.cell));
    const int64_t per_piece = 16 / bytes_of(p.number);
    const int64_t padded = ceil_div(p.H, per_piece) * per_piece;
    G = p.backward ? 1 : gates;
    features = p.backward ? gates * padded : padded;
  }
  int64_t chunks(const Problem& p) const {
    return ceil_div(features, kChunkBytes / bytes_of(p.number));
  }
  // Those that the busiest warp multiplies.
  int64_t chunks(const Problem& p, int slices) const { return ceil_div(chunks(p), slices); }
};

// ---- the model's time ---------------------------------------------------------------------------

// Clock cycles, from the data sheets' rates; docs/cuda.md works out an example. They rank layouts
// and decide between the two paths; nothing was fitted to a device.
constexpr double kExchange = 1100;      // a store, until a load in another block sees it
constexpr double kBarrier = 60;         // the block's barrier
constexpr double kGates = 160;          // a cell's chain of exponentials and divisions
constexpr double kVectorBytes = 40;     // a multiprocessor reads from the L2 cache a cycle
constexpr double kSharedBytes = 128;    // and from its shared memory
constexpr double kTensorIssue = 16;     // between two tensor instructions of a scheduler
constexpr double kGeneralStep = 14000;  // a library product and a kernel, launched and run alone
constexpr double kGeneralRate =
    0.5;  // share of the device's multiply-adds that such products reach

double multiply_adds_per_cycle(const Problem& p, const Properties& device, bool tensor) {
  if (tensor) return device.multiprocessors * (p.number == Number::kFloat ? 512. : 1024.);
  if (p.number == Number::kDouble)
    return device.multiprocessors * (device.capability == 80 || device.capability == 90 ? 64. : 2.);
  return device.multiprocessors * (p.number == Number::kFloat ? 128. : 256.);
}

double cycles_of_step(const Problem& p, const Properties& device, const Layout& l, bool tensor) {
  const Product product(p);
  const double chunks = static_cast<double>(product.chunks(p, l.slices));
  const double warps_per_scheduler = std::max(1., l.tiles * l.slices / 4.);
  double multiply;
  if (tensor) {
    multiply = chunks * 2 * ((product.G + 1) / 2) * 2 * kTensorIssue * warps_per_scheduler;
  } else {
    const double numbers = static_cast<double>(kChunkBytes) / bytes_of(p.number);
    const double rate = multiply_adds_per_cycle(p, device, false) / device.multiprocessors;
    multiply = chunks * numbers * kTileRows * kColumns * product.G * l.tiles * l.slices / rate;
  }
  const int held = held_chunks(bytes_of(p.number), product.G, tensor);
  const double further = std::max(0., chunks - held) * l.tiles * l.slices *
                         weight_chunk_bytes(product.G) / kSharedBytes;
  const double vectors =
      static_cast<double>(product.features) * bytes_of(p.number) * kColumns / kVectorBytes;
  const double passes = static_cast<double>(ceil_div(l.group_rows, kColumns));
  return kExchange + passes * (std::max(vectors, multiply + further) + kBarrier + kGates +
                               product.G * l.slices * 4.);
}

double cycles_of_general_step(const Problem& p, const Properties& device, bool tensor) {
  const double work = static_cast<double>(num_gates(p.cell)) * p.H * p.P * p.B * p.D;
  return kGeneralStep + work / (kGeneralRate * multiply_adds_per_cycle(p, device, tensor));
}

}  // namespace

void check(const Forced& forced) {
  if (forced.general &&
      (forced.persistent || forced.tiles || forced.slices || forced.groups || forced.rows))
    throw std::invalid_argument("plan: expected nothing beside general");
  if (forced.tiles < 0 || forced.slices < 0 || forced.groups < 0 || forced.rows < 0 ||
      (forced.slices > 0 && forced.slices < 4) || forced.tiles > kWarps || forced.slices > kWarps ||
      std::max(forced.tiles, 1) * std::max(forced.slices, 4) > kWarps)
    throw std::invalid_argument(
        "plan: expected positive numbers, at least 4 slices, and tiles * slices of at most 8");
}

int shared_bytes(const Problem& p, const Layout& l, bool tensor) {
  const Product product(p);
  const int64_t warps = l.tiles * l.slices;
  const int64_t sum = p.number == Number::kDouble ? 8 : 4;
  const int64_t partial = 2 * warps * product.G * kTileRows * kPartialLead * sum;
  const int64_t further = std::max<int64_t>(
      0, product.chunks(p, l.slices) - held_chunks(bytes_of(p.number), product.G, tensor));
  const int64_t bytes =
      partial + warps * (further * weight_chunk_bytes(product.G) + stage_bytes(tensor));
  return static_cast<int>(std::min<int64_t>(bytes, std::numeric_limits<int>::max()));
}

WeightBytes weight_bytes(const Problem& p, const Layout& l, bool tensor) {
  const Product product(p);
  const int held = held_chunks(bytes_of(p.number), product.G, tensor);
  const int64_t all = product.chunks(p);
  WeightBytes bytes{};
  for (int slice = 0; slice < l.slices; ++slice) {
    const int64_t chunks = all > slice ? ceil_div(all - slice, l.slices) : 0;
    const int64_t in_registers = std::min<int64_t>(chunks, held);
    bytes.registers += in_registers * l.tiles * weight_chunk_bytes(product.G);
    bytes.shared += (chunks - in_registers) * l.tiles * weight_chunk_bytes(product.G);
  }
  return bytes;
}

Plan make_plan(const Problem& p, const Properties& device, const Forced& forced) {
  Plan plan{};
  plan.tensor = p.number == Number::kHalf || p.number == Number::kBfloat16 ||
                (p.number == Number::kFloat && p.tf32 && device.capability >= 80);
  const auto general = [&](const char* why) {
    plan.persistent = false;
    plan.why = why;
    return plan;
  };
  if (forced.general) return general("forced");
  if (p.cell == Cell::kGruResetBefore) return general("a second product in every step");
  if (p.P != p.H) return general("projection");
  if (!device.cooperative) return general("the device launches no cooperative grids");
  if (device.capability < 75) return general("compute capability below 7.5");
  if (p.number == Number::kBfloat16 && device.capability < 80)
    return general("no tensor cores for bfloat16");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 16;
  if (p.B > kMost || p.H > kMost || p.T >= std::numeric_limits<int32_t>::max() - 1)
    return general("too large for 32-bit counters");

  double best = std::numeric_limits<double>::infinity();
  for (int tiles = 1; tiles <= kWarps / 4; ++tiles) {
    if (forced.tiles && tiles != forced.tiles) continue;
    Layout l{};
    l.tiles = tiles;
    l.slices = forced.slices ? forced.slices : kWarps / tiles;
    if (tiles * l.slices > kWarps) continue;
    l.directions = static_cast<int>(p.D);
    const int64_t units = kTileRows * tiles;
    const int64_t parts = ceil_div(p.H, units);
    // One block on a multiprocessor, of which it may take all registers.
    if (l.threads() * kRegisters > device.registers_per_multiprocessor ||
        l.threads() > device.threads_per_multiprocessor)
      continue;
    const int64_t most_groups = device.multiprocessors / (parts * p.D);
    if (most_groups < 1) continue;
    l.parts = static_cast<int>(parts);
    l.shared_bytes = shared_bytes(p, l, plan.tensor);
    if (l.shared_bytes > std::min(device.shared_per_block, device.shared_per_multiprocessor))
      continue;
    // The pairs of one pass after another are dealt to the threads; a pass that would begin among
    // the last threads has no room (Pair in persistent.cuh).
    const int64_t pairs = kColumns * units;
    const int64_t most_rows =
        l.threads() % pairs == 0 ? kCarried * l.threads() / pairs * kColumns : kColumns;
    const int64_t groups = forced.groups
                               ? std::min<int64_t>(forced.groups, most_groups)
                               : std::clamp<int64_t>(ceil_div(p.B, kColumns), 1, most_groups);
    int64_t rows = ceil_div(ceil_div(std::max<int64_t>(p.B, 1), groups), kColumns) * kColumns;
    if (forced.rows) rows = forced.rows;
    rows = std::min(rows, most_rows);
    l.group_rows = static_cast<int>(rows);
    // No block without sequences.
    l.groups = static_cast<int>(std::min(groups, ceil_div(std::max<int64_t>(p.B, 1), rows)));
    const int launches = static_cast<int>(ceil_div(std::max<int64_t>(p.B, 1), l.rows()));
    const double cycles = launches * cycles_of_step(p, device, l, plan.tensor);
    if (cycles >= best) continue;
    best = cycles;
    plan.layout = l;
    plan.launches = launches;
  }
  if (best == std::numeric_limits<double>::infinity())
    return general("the weights do not fit into the device's registers and shared memory");
  const bool asked =
      forced.persistent || forced.tiles || forced.slices || forced.groups || forced.rows;
  if (!asked && best > cycles_of_general_step(p, device, plan.tensor))
    return general("a library's products are expected to be faster");
  plan.persistent = true;
  return plan;
}

// From NVIDIA's tables of technical specifications per compute capability.
Properties a100() { return {80, 108, 65536, 167936, 166912, 2048, true}; }
Properties h100() { return {90, 132, 65536, 233472, 232448, 2048, true}; }
Properties rtx4090() { return {89, 128, 65536, 102400, 101376, 1536, true}; }

}  // namespace seq2seq_ext::cuda
