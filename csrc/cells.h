// The recurrent cells, and what the operators on every device agree on about them: the number of
// gates, and the size and layout of what forward keeps for backward.
#pragma once

#include <cstdint>

namespace seq2seq_ext {

// kCoupledLstm, whose input gate is 1 - f, comes with the other variants only (recurrence.h).
enum class Cell { kLstm, kGru, kGruResetBefore, kRnnTanh, kRnnRelu, kCoupledLstm };

// Gates that a cell's weight matrices hold.
constexpr int64_t num_gates(Cell cell) {
  return cell == Cell::kLstm ? 4 : cell == Cell::kRnnTanh || cell == Cell::kRnnRelu ? 1 : 3;
}

// Values per hidden unit and step that backward needs beside the outputs. LSTM: i f g o c;
// GRU: r z n and W_hn h + b_hn; GRU with reset before: r z n; RNN: nothing.
constexpr int64_t reserve_slots(Cell cell) {
  return cell == Cell::kLstm ? 5 : cell == Cell::kGru ? 4 : cell == Cell::kGruResetBefore ? 3 : 0;
}

// Rows of the reserve are padded to this many units, on every instruction set, so that its size
// can be known without asking which one runs.
constexpr int64_t kUnitPadding = 16;
constexpr int64_t padded_units(int64_t H) {
  return (H + kUnitPadding - 1) / kUnitPadding * kUnitPadding;
}

// Elements of the reserve for N steps: the cells' slots (L*D, N, slots, padded H), then the
// outputs of all layers but the last (L-1, N, D*P).
inline int64_t reserve_size(Cell cell, int64_t L, int64_t D, int64_t N, int64_t H, int64_t P) {
  return L * D * N * reserve_slots(cell) * padded_units(H) + (L - 1) * N * D * P;
}

}  // namespace seq2seq_ext
