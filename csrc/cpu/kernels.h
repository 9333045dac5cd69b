// What a caller hands to the CPU kernels: plain sizes and pointers, no torch. One `Kernels` table
// exists per instruction set; dispatch.cpp picks one when the library is loaded.
//
// Sizes: T time steps, B batch rows, N valid steps of all rows together, I input features, H hidden
// units, P output features of a cell (H, or proj_size), L layers, D directions, G gates.
//
// Compact order. Kernels see the batch sorted by descending length, and of the T x B steps only
// the N valid ones: at step t the rows 0 .. active[t]-1 run, and step (t, b) is compact row
// r = offset[t] + b. This is the order of torch's PackedSequence, so packed input is read in
// place, and padding costs nothing in any of the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cells.h"
#include "../decoder.h"
#include "../recurrence.h"
#include "../search.h"
#include "team.h"

namespace seq2seq_ext {

// What a matrix makes of every token is kept where it is no more than so many numbers.
inline constexpr int64_t kMostOfTable = int64_t{1} << 22;

struct Sequence {
  int64_t T, B, N;
  const int64_t* active;  // (T) rows that run at step t, never increasing
  const int64_t* offset;  // (T) compact row of step (t, 0)
  const int64_t* source;  // (B) the caller's batch row of sorted row b; null: the same
  const uint8_t* reset;   // (N) compact; not 0: the state entering this step is zero; null: none
};

// Where the features of compact row r lie: at base + offset[r], or at base + r * stride where
// offset is null. A null base means that there is no such array.
template <typename T>
struct Rows {
  T* base = nullptr;
  const int64_t* offset = nullptr;  // (N) in elements
  int64_t stride = 0;

  T* operator()(int64_t r) const { return base + (offset ? offset[r] : r * stride); }
  explicit operator bool() const { return base != nullptr; }
};

// The parameters of one direction of one layer, row-major and contiguous as torch keeps them.
template <typename T>
struct Weights {
  T* w_ih;  // (G*H, I)
  T* w_hh;  // (G*H, P)
  T* b_ih;  // (G*H) or null
  T* b_hh;  // (G*H) or null
  T* w_hr;  // (P, H) or null: no projection
};

// How the work is laid on threads.
enum class Split {
  kRows,    // each thread carries its own batch rows through all steps and never waits
  kUnits,   // all share every step, each with its own hidden units, and meet once a step or twice
  kLayers,  // each runs layers of its own, some steps behind the layer below: forward, one
            // direction
};

struct Plan {
  int threads = 1;
  Split split = Split::kRows;
  double seconds = 0;  // what the call is expected to take
};

// A whole stack. Layer l, direction d has index l * D + d in weights, h_0, c_0, h_n, c_n.
template <typename T>
struct Stack {
  Cell cell;
  int64_t L, D, I, H, P;
  Sequence sequence;
  Plan plan;
  const Weights<const T>* weights;  // (L*D)
  Rows<const T> x;                  // N rows of I
  Rows<const T> gates;              // N rows of TokenGates in place of x; null base: none
  Rows<const T> dropout_mask;       // N rows of D*P: of layer 0; layer l lies mask_layer further
  int64_t mask_layer;
  const T* h_0;  // (L*D, B, P) or null: zero
  const T* c_0;  // (L*D, B, H) or null: zero; LSTM only
};

// What packed weights are stored as: T itself, bfloat16, or 8-bit integers with a scale per row of
// a weight matrix. The narrow types are for float only.
enum class WeightType { kFull, kBf16, kInt8 };

// Weights that stay packed between calls; null: each call packs its own.
struct PackedBlock {
  const void* memory = nullptr;  // aligned to 64
  WeightType type = WeightType::kFull;
};

// One direction of a layer with variants, and how it is laid on threads: by rows. Forward alone
// reads the blocks, and what one was made of is then not looked at.
template <typename Call>
struct Planned : Call {
  Plan plan;
  PackedBlock packed_hh;  // with reset before, its first 2H rows
  PackedBlock packed_hn;  // with reset before, the other H
  PackedBlock packed_hr;
};

// Decoding with weights that are packed, and how its rows or sources are laid on threads.
template <typename Call>
struct PlannedDecoding : Call {
  Plan plan;
  PackedBlock packed;
};

// y = x W^T + bias.
template <typename T>
struct Linear {
  int64_t rows, K, N;
  const T* x;          // (rows, K)
  PackedBlock packed;  // of W (N, K)
  const T* bias;       // (N) or null
  T* y;                // (rows, N)
  Plan plan;
};

template <typename T>
struct Forward : Stack<T> {
  const void* packed;  // what Kernels::pack made of the weights, or null: each call packs them anew
  WeightType packed_type;
  Rows<T> y;   // N rows of D*P
  T* h_n;      // (L*D, B, P)
  T* c_n;      // (L*D, B, H), LSTM only
  T* reserve;  // see reserve_size, or null: nothing is kept for backward
};

// What the input's part of the first layer's gates is, biases included, for each row of a table, as
// the kernels read it: for layers that only ever see these rows, with packed weights.
template <typename T>
struct TokenGates : Stack<T> {  // without a sequence
  const void* packed;           // as in Forward
  WeightType packed_type;
  int64_t V;
  const T* features;  // (V, I)
  T* rows;            // (V, token_gates_width), aligned to 64
};

template <typename T>
struct Backward : Stack<T> {
  Rows<const T> y;
  const T* reserve;
  Rows<const T> d_y;            // N rows of D*P; null base: zero
  const T* d_h_n;               // (L*D, B, P) or null: zero
  const T* d_c_n;               // (L*D, B, H) or null: zero
  Rows<T> d_x;                  // N rows of I; null base: not wanted
  T* d_h_0;                     // (L*D, B, P)
  T* d_c_0;                     // (L*D, B, H), LSTM only
  const Weights<T>* d_weights;  // (L*D), every pointer null where that gradient is not wanted
};

// The entry points of one instruction set. `*_workspace` gives the bytes of scratch, aligned to 64,
// that the call needs; all members of the team make the call with the same arguments.
struct Kernels {
  const char* name;
  int vector_bytes;
  size_t (*forward_workspace_f32)(const Forward<float>&);
  size_t (*forward_workspace_f64)(const Forward<double>&);
  size_t (*backward_workspace_f32)(const Backward<float>&);
  size_t (*backward_workspace_f64)(const Backward<double>&);
  // Weights that stay packed between calls of forward: bytes, and the packing of the layers in
  // `stack`, of which only sizes and weights are read, to a block aligned to 64.
  size_t (*packed_size_f32)(const Stack<float>& stack, WeightType);
  size_t (*packed_size_f64)(const Stack<double>& stack, WeightType);
  void (*pack_f32)(const Stack<float>& stack, WeightType, void* packed);
  void (*pack_f64)(const Stack<double>& stack, WeightType, void* packed);
  int64_t (*token_gates_width_f32)(const Stack<float>& stack);
  int64_t (*token_gates_width_f64)(const Stack<double>& stack);
  size_t (*token_gates_workspace_f32)(const TokenGates<float>&);
  size_t (*token_gates_workspace_f64)(const TokenGates<double>&);
  void (*token_gates_f32)(const TokenGates<float>&, void* workspace);
  void (*token_gates_f64)(const TokenGates<double>&, void* workspace);
  // What packed_size and pack are, of a single matrix w (N, K), for linear and the recurrence with
  // variants.
  size_t (*matrix_size_f32)(int64_t K, int64_t N, WeightType);
  size_t (*matrix_size_f64)(int64_t K, int64_t N, WeightType);
  void (*pack_matrix_f32)(const float* w, int64_t K, int64_t N, WeightType, void* packed);
  void (*pack_matrix_f64)(const double* w, int64_t K, int64_t N, WeightType, void* packed);
  size_t (*linear_workspace_f32)(const Linear<float>&);
  size_t (*linear_workspace_f64)(const Linear<double>&);
  void (*linear_f32)(const Linear<float>&, const Member&, void* workspace);
  void (*linear_f64)(const Linear<double>&, const Member&, void* workspace);
  void (*forward_f32)(const Forward<float>&, const Member&, void* workspace);
  void (*forward_f64)(const Forward<double>&, const Member&, void* workspace);
  void (*backward_f32)(const Backward<float>&, const Member&, void* workspace);
  void (*backward_f64)(const Backward<double>&, const Member&, void* workspace);
  size_t (*recurrence_forward_workspace_f32)(const Planned<RecurrenceForward<float>>&);
  size_t (*recurrence_forward_workspace_f64)(const Planned<RecurrenceForward<double>>&);
  size_t (*recurrence_backward_workspace_f32)(const Planned<RecurrenceBackward<float>>&);
  size_t (*recurrence_backward_workspace_f64)(const Planned<RecurrenceBackward<double>>&);
  size_t (*recurrence_tangent_workspace_f32)(const Planned<RecurrenceTangent<float>>&);
  size_t (*recurrence_tangent_workspace_f64)(const Planned<RecurrenceTangent<double>>&);
  void (*recurrence_forward_f32)(const Planned<RecurrenceForward<float>>&, const Member&, void*);
  void (*recurrence_forward_f64)(const Planned<RecurrenceForward<double>>&, const Member&, void*);
  void (*recurrence_backward_f32)(const Planned<RecurrenceBackward<float>>&, const Member&, void*);
  void (*recurrence_backward_f64)(const Planned<RecurrenceBackward<double>>&, const Member&, void*);
  void (*recurrence_tangent_f32)(const Planned<RecurrenceTangent<float>>&, const Member&, void*);
  void (*recurrence_tangent_f64)(const Planned<RecurrenceTangent<double>>&, const Member&, void*);
  size_t (*decoder_forward_workspace_f32)(const Planned<DecoderForward<float>>&);
  size_t (*decoder_forward_workspace_f64)(const Planned<DecoderForward<double>>&);
  size_t (*decoder_backward_workspace_f32)(const Planned<DecoderBackward<float>>&);
  size_t (*decoder_backward_workspace_f64)(const Planned<DecoderBackward<double>>&);
  void (*decoder_forward_f32)(const Planned<DecoderForward<float>>&, const Member&, void*);
  void (*decoder_forward_f64)(const Planned<DecoderForward<double>>&, const Member&, void*);
  void (*decoder_backward_f32)(const Planned<DecoderBackward<float>>&, const Member&, void*);
  void (*decoder_backward_f64)(const Planned<DecoderBackward<double>>&, const Member&, void*);
  // As packed_size and pack.
  size_t (*packed_decoder_size_f32)(const DecoderWeights<float>&, WeightType);
  size_t (*packed_decoder_size_f64)(const DecoderWeights<double>&, WeightType);
  void (*pack_decoder_f32)(const DecoderWeights<float>&, WeightType, void* packed);
  void (*pack_decoder_f64)(const DecoderWeights<double>&, WeightType, void* packed);
  size_t (*step_workspace_f32)(const PlannedDecoding<DecodingStep<float>>&);
  size_t (*step_workspace_f64)(const PlannedDecoding<DecodingStep<double>>&);
  void (*step_f32)(const PlannedDecoding<DecodingStep<float>>&, const Member&, void* workspace);
  void (*step_f64)(const PlannedDecoding<DecodingStep<double>>&, const Member&, void* workspace);
  size_t (*search_workspace_f32)(const PlannedDecoding<Search<float>>&);
  size_t (*search_workspace_f64)(const PlannedDecoding<Search<double>>&);
  void (*search_f32)(const PlannedDecoding<Search<float>>&, const Member&, void* workspace);
  void (*search_f64)(const PlannedDecoding<Search<double>>&, const Member&, void* workspace);
  // y = f(x) over n values, for the tests of the vector mathematics: 0 exp, 1 tanh, 2 sigmoid.
  void (*map_f32)(int function, int64_t n, const float* x, float* y);
  void (*map_f64)(int function, int64_t n, const double* x, double* y);
  // What limits.cpp times. Multiply-adds on registers: returns the operations; `seed` is unknown to
  // the compiler, so that nothing is left out. A pass over `bytes`, a multiple of 8 vectors:
  // returns them.
  int64_t (*multiply_add)(int64_t rounds, float seed, float* result);
  int64_t (*read_all)(const char* data, int64_t bytes, int32_t* result);
};

}  // namespace seq2seq_ext
