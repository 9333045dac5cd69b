// The arguments of the operators, from what a caller hands over to what the kernels read: checked,
// and with the tables of the compact order (kernels.h). Nothing is allocated for a check unless it
// fails, and a dense batch needs no table beyond two numbers for each step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "tensors.h"

namespace seq2seq_ext {

// As they come. An empty handle stands for None.
struct Given {
  Handle x, h_0, c_0;
  std::vector<Handle> weights;
  int64_t cell, num_layers;
  bool bidirectional;
  Handle lengths, batch_sizes, resets, dropout_mask;
};

// What x holds.
enum class Form {
  kDense,   // (T, B, I)
  kPacked,  // (N, I), with batch_sizes
  kStep     // (B, I): one step of one layer, whose states have no axis of layers
};

struct Arguments {
  Cell cell;
  int32_t dtype;
  Form form;
  int64_t T, B, I, H, P, L, D;
  int64_t N;          // valid steps
  int64_t user_rows;  // of x without its features: T*B, or N where packed
  bool bias, projected;
  View x;         // with adjacent features
  View h_0, c_0;  // contiguous, or none: zero
  View dropout_mask;
  std::vector<const void*> weights;  // contiguous, `roles()` to a layer and direction

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`.
  explicit Arguments(const Given& given);

  // Makes the tables below, which live as long as the frame. Apart from the checks, so that tensors
  // too large for the memory are refused before anything of their size is written.
  void arrange(Scratch::Frame& frame);

  const int64_t* active = nullptr;  // as in Sequence, like all to reset
  const int64_t* offset = nullptr;
  const int64_t* source = nullptr;
  const uint8_t* reset = nullptr;
  const int64_t* row = nullptr;  // (N) where the caller has compact row r, t * B + b; null: at r
  const int64_t* lengths = nullptr;  // (B) as given; null: all T

  int64_t roles() const { return 2 + (bias ? 2 : 0) + (projected ? 1 : 0); }
  Shape output_shape() const;                 // of y
  Shape state_shape(int64_t features) const;  // of h_0 and c_0
  int64_t reserve_elements() const { return reserve_size(cell, L, D, user_rows, H, P); }
  // Shape of weight `role` of the layer.
  Shape weight_shape(int64_t layer, int64_t role) const;

  // Whether `view` has `shape` and the dtype and device of x; throws if not.
  void check(const char* name, const View& view, const Shape& shape) const;
  // Throws if there is a tensor where `what` has none.
  void check_none(const char* name, const View& view, const char* what) const;
  View contiguous(View view);
  View with_adjacent_features(View view);

 private:
  void take_weights(const std::vector<Handle>& given);
  void take_batch_sizes(View given);
  void take_lengths(View given);
  void take_resets(View given);

  const int64_t* batch_sizes_ = nullptr;  // (T), packed only
  const uint8_t* resets_ = nullptr;       // as given
  std::vector<Handle> copies_;            // what had to be made contiguous
};

}  // namespace seq2seq_ext
