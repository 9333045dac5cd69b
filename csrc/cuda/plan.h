// Which way a layer takes, and how a persistent kernel is laid on a device: an occupancy and
// capacity model from the device's properties. Plain C++: neither CUDA headers nor torch, so that
// plans for devices that are not at hand can be made, printed and tested anywhere.
#pragma once

#include <cstdint>

#include "../cells.h"

namespace seq2seq_ext::cuda {

// What the model knows of a device; the names are those of cudaDeviceAttribute.
struct Properties {
  int capability;  // 80 for 8.0
  int multiprocessors;
  int registers_per_multiprocessor;
  int shared_per_multiprocessor;
  int shared_per_block;  // with opt-in
  int threads_per_multiprocessor;
  bool cooperative;
};

// Numbers as they are stored. Floats are multiplied by tensor cores where TF32 is allowed.
enum class Number { kHalf, kBfloat16, kFloat, kDouble };
constexpr int bytes_of(Number n) { return n == Number::kDouble ? 8 : n == Number::kFloat ? 4 : 2; }

struct Problem {
  Cell cell;
  Number number;
  bool tf32;  // whether floats may be rounded to TF32
  bool backward;
  int64_t T, B, H, P, D;
};

// How a persistent kernel is laid out. A block owns 8 * tiles hidden units of one direction for the
// sequences of one group; its warps share a product of each tile by `slices` of the features.
// Blocks are numbered by part (which units), then group, then direction.
struct Layout {
  int tiles, slices;
  int parts;       // blocks that together hold one direction's weights
  int groups;      // of sequences, each with its own blocks
  int group_rows;  // sequences of a group, at most
  int64_t first;   // the first sequence of this launch
  int directions;
  int shared_bytes;  // of a block

  int threads() const { return tiles * slices * 32; }
  int blocks() const { return parts * groups * directions; }
  int rows() const { return groups * group_rows; }
};

struct Plan {
  bool persistent;
  bool tensor;    // whether tensor cores multiply
  Layout layout;  // of the first launch; the others differ in `first`
  int launches;
  const char* why;  // why it is not persistent
};

// ---- the persistent kernels' shape, which they and the model share ------------------------------

constexpr int kWarps = 8;         // of a block, at most
constexpr int kRegisters = 256;   // that a thread's 255 take, allocated in eights
constexpr int kCarried = 4;       // states of units and sequences that a thread carries, at most
constexpr int kTileRows = 8;      // rows of a weight tile
constexpr int kColumns = 16;      // sequences that one pass multiplies
constexpr int kPartialLead = 20;  // numbers from one row of a partial sum to the next: lanes of 8
                                  // rows and 4 columns read from 32 different banks
constexpr int kChunkBytes = 64;   // of a vector, the unit in which weights are held

// Bytes of a warp's weights of one chunk, for G kinds of rows.
constexpr int weight_chunk_bytes(int G) { return G * kTileRows * kChunkBytes; }
// Chunks of them that a warp holds in registers, found by what compiles without spills.
constexpr int held_chunks(int number_bytes, int G, bool tensor) {
  if (tensor) return G == 1 ? 12 : G == 3 ? 7 : 8;
  if (number_bytes == 8) return G == 1 ? 12 : G == 3 ? 4 : 2;
  return G == 1 ? 16 : G == 3 ? 8 : 4;
}
// Shared memory in which a warp of the scalar product lays 8 vectors' pieces of one chunk.
constexpr int stage_bytes(bool tensor) { return tensor ? 0 : 8 * kChunkBytes; }

// Shared memory of a block.
int shared_bytes(const Problem&, const Layout&, bool tensor);

// Bytes of recurrent weights that a block keeps for the whole sequence, all its warps together.
struct WeightBytes {
  int64_t registers, shared;
};
WeightBytes weight_bytes(const Problem&, const Layout&, bool tensor);

// Parts of a plan that somebody chose; 0: the model does.
struct Forced {
  bool general = false, persistent = false;
  int tiles = 0, slices = 0, groups = 0, rows = 0;
};

// Throws std::invalid_argument for what no block can be.
void check(const Forced&);

Plan make_plan(const Problem&, const Properties&, const Forced& = {});

// Devices whose published limits the tests check the model against.
Properties a100();
Properties h100();
Properties rtx4090();

}  // namespace seq2seq_ext::cuda
