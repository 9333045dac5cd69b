// One direction of one layer with all that a cell may have beside its plain equations: what callers
// hand to the kernels of either device. Plain sizes and pointers, no torch.
//
// Sizes: T time steps, B sequences, H hidden units, P features of h (H, or proj_size), G gates,
// N rows. A row is a step of a sequence, t * B + b in a dense batch, offset[t] + b in a packed one.
// W_ih x + b_ih comes ready-made; products over all rows at once, such as weight gradients, are the
// caller's: `Kept` and `Gradients` hold what they are formed of, and zeros in the rows of no step.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells.h"

namespace seq2seq_ext {

// Slots of `Kept::step`, H numbers each: what backward reads of a step.
//   LSTM           i f g o, c as it leaves the gates, c before the step
//   coupled LSTM   f g o, c as it leaves the gates, c before the step
//   GRU            r z n, n's recurrent sum, h (with a projection c) before the step
//   reset before   r z n, h before the step
//   RNN            h as it leaves the activation
constexpr int64_t kept_slots(Cell cell) {
  return cell == Cell::kLstm                                ? 6
         : cell == Cell::kCoupledLstm || cell == Cell::kGru ? 5
         : cell == Cell::kGruResetBefore                    ? 4
                                                            : 1;
}

constexpr bool is_lstm(Cell cell) { return cell == Cell::kLstm || cell == Cell::kCoupledLstm; }

// Whether a state c of H units goes from step to step beside h. That of a GRU with a projection is
// what a GRU's h otherwise is, and h the projected c.
constexpr bool has_cell(Cell cell, bool projected) {
  return is_lstm(cell) || (cell == Cell::kGru && projected);
}

// Numbers of `Kept::moments`: 1 / deviation of the recurrent sums, the same of the candidate's
// alone where it has a product of its own, mean and 1 / deviation of the cell.
constexpr int64_t kMoments = 4;

struct Noise {
  double zoneout_h = 0, zoneout_c = 0;  // probability that a unit keeps its old value
  double candidate = 0;                 // probability that a unit's candidate is dropped
  const int64_t* seed = nullptr;        // (1) where the kernel runs; null: expectations, no noise
  uint32_t stream = 0;                  // apart for every layer and direction
};

template <typename T>
struct Recurrence {
  Cell cell;
  int64_t T_, B, H, P, N;
  bool reverse;
  const int64_t* length;  // (B) or null: all T
  const int64_t* offset;  // (T), packed only, with lengths that fall
  const uint8_t* reset;   // (N) not 0: the state entering this step is zero; or null

  const T* x;         // (N, G*H)
  const T* w_hh;      // (G*H, P)
  const T* b_hn;      // (H) GRU only: what is added to n's recurrent sum; or null
  const T* w_hr;      // (P, H) or null: no projection; not with reset before
  const T* h_0;       // (B, P) or null: zero
  const T* c_0;       // (B, H) or null: zero; has_cell() only
  const T* h_mask;    // (B, P) what h is multiplied by before W_hh; or null
  const T* peephole;  // (3, H) of i f o, coupled (2, H) of f o; or null
  const T* norm_hh;   // (G*H) gains of the normalized recurrent sums; null: no normalization
  const T* norm_c;    // (H) gains of the normalized cell; or null
  const T* bias_c;    // (H) or null

  Noise noise;
  bool hard_sigmoid;
  double cell_clip, proj_clip;  // largest magnitude; 0: any
};

// What forward leaves for backward; null pointers where nothing is kept.
template <typename T>
struct Kept {
  T* step;     // (N, slots, H)
  T* h_in;     // (N, P) what W_hh multiplied
  T* inner;    // (N, H) what a second product multiplied: of W_hr, or r h with reset before
  T* out;      // (N, P) projected h as it leaves proj_clip
  T* sums;     // (N, G*H) normalized recurrent sums
  T* moments;  // (N, kMoments)
};

template <typename T>
struct RecurrenceForward : Recurrence<T> {
  T* y;      // (N, P)
  T* cells;  // (N, H) c of every step, or null
  T* h_n;    // (B, P)
  T* c_n;    // (B, H), has_cell() only
  Kept<T> kept;
};

template <typename T>
struct RecurrenceBackward : Recurrence<T> {
  Kept<const T> kept;
  const T* d_step;   // (N, slots, H) gradient of what was kept; or null: zero
  const T* d_h_in;   // (N, P) the same; or null
  const T* d_y;      // (N, P) or null: zero
  const T* d_cells;  // (N, H) or null: zero
  const T* d_h_n;    // (B, P) or null: zero
  const T* d_c_n;    // (B, H) or null: zero
  T* d_x;            // (N, G*H)
  T* d_sum;          // (N, G*H) of W_hh h; null where it is d_x
  T* d_cell;         // (N, H) of the normalized cell; null where there is none
  T* d_out;          // (N, P) of what W_hr gives; null where there is no projection
  T* d_h_0;          // (B, P)
  T* d_c_0;          // (B, H), has_cell() only
  T* whole_h;        // (N, H) gradient of h as it leaves the cell, or null: not wanted
  T* whole_c;        // (N, H) the same of c as it leaves the gates, or null
};

// The derivative of `recurrence` in a direction, for cells without variants (`has_tangent`). Of
// RecurrenceForward, x, h_0 and c_0 are the direction, y, cells, h_n, c_n and kept.h_in the
// derivatives; nothing else is kept.
//
// Backward is linear in its gradients, and this is its transpose: given as direction the gradients
// of what backward returned, it gives those of d_y, d_cells, d_h_n and d_c_n. With `whole_h`,
// `second` is the gradient of what forward had kept.
template <typename T>
struct RecurrenceTangent : RecurrenceForward<T> {
  const T* sum;      // (N, G*H) of W_hh h beside what the state gives, or null
  const T* step;     // (N, slots, H) what forward kept
  const T* whole_h;  // (N, H) as backward left it, or null
  const T* whole_c;  // (N, H) the same, LSTMs only
  T* second;         // (N, slots, H), or null
};

constexpr bool has_tangent(Cell cell) {
  return cell != Cell::kGruResetBefore && cell != Cell::kCoupledLstm;
}

// Numbers at random from a counter: Philox 4x32 with ten rounds (Salmon, Moraes, Dror & Shaw 2011).
// The key is the seed, the counter (unit, sequence, time, stream), so that they are the same on
// every device and for every team: of the four, the first decides on zoneout of h, the second on
// that of c, the third on the candidate.
inline constexpr uint32_t kPhiloxFactor0 = 0xD2511F53, kPhiloxFactor1 = 0xCD9E8D57;
inline constexpr int kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxStep0 = 0x9E3779B9, kPhiloxStep1 = 0xBB67AE85;

// What 32 random bits are compared with.
#if defined(__CUDACC__)
__host__ __device__
#endif
    inline uint32_t threshold(double probability) {
  return static_cast<uint32_t>(probability * 4294967296.0);  // below 1
}

}  // namespace seq2seq_ext
