// The arguments of the operators, from what a caller hands over to what the kernels read: checked,
// and with the tables of the compact order (kernels.h). Nothing is allocated for a check unless it
// fails, and a dense batch needs no table beyond two numbers for each step.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "tensors.h"

namespace seq2seq_ext {

// For messages: a name, a shape, the shape of a tensor.
std::ostream& operator<<(std::ostream& out, Cell cell);
std::ostream& operator<<(std::ostream& out, const Shape& shape);
std::ostream& operator<<(std::ostream& out, const View& view);

// Becomes a RuntimeError in Python. Unlike STD_TORCH_CHECK it does not put this file's name before
// what a user is to read.
template <typename... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

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

// A stack of layers: sizes and weights.
struct Layers {
  Cell cell;
  int32_t dtype;
  int64_t I, H, P, L, D;
  bool bias, projected;
  std::vector<const void*> given;    // where the weights lie
  std::vector<const void*> weights;  // and contiguous, `roles()` to a layer and direction

  // Layers of `dtype` for an input of `I` features. Throws std::runtime_error naming the argument
  // that is wrong.
  Layers(const std::vector<Handle>& weights, int64_t cell, int64_t num_layers, bool bidirectional,
         int32_t dtype, int64_t I);

  int64_t roles() const { return 2 + (bias ? 2 : 0) + (projected ? 1 : 0); }
  // Shape of weight `role` of the layer.
  Shape weight_shape(int64_t layer, int64_t role) const;
  size_t weight_bytes(int64_t index) const;

  // The tensor, or a copy of it that lives as long as this.
  View contiguous(View view);

 private:
  std::vector<Handle> copies_;
};

// Pointers to weights or their gradients, from as many for each layer and direction as there are
// roles.
template <typename T, typename PointerAt>
const Weights<T>* weight_pointers(const Layers& layers, Scratch::Frame& frame,
                                  const PointerAt& at) {
  Weights<T>* pointers = frame.take<Weights<T>>(layers.L * layers.D);
  const int64_t roles = layers.roles();
  for (int64_t i = 0; i < layers.L * layers.D; ++i) {
    const int64_t first = i * roles;
    pointers[i] = {static_cast<T*>(at(first)), static_cast<T*>(at(first + 1)),
                   layers.bias ? static_cast<T*>(at(first + 2)) : nullptr,
                   layers.bias ? static_cast<T*>(at(first + 3)) : nullptr,
                   layers.projected ? static_cast<T*>(at(first + roles - 1)) : nullptr};
  }
  return pointers;
}

// What of a call the kernels know without its input.
template <typename T>
void fill_layers(const Layers& layers, Scratch::Frame& frame, Stack<T>& stack) {
  stack.cell = layers.cell;
  stack.L = layers.L;
  stack.D = layers.D;
  stack.I = layers.I;
  stack.H = layers.H;
  stack.P = layers.P;
  stack.weights =
      weight_pointers<const T>(layers, frame, [&](int64_t i) { return layers.weights[i]; });
}

struct Arguments : Layers {
  Form form;
  int64_t T, B;
  int64_t N;          // valid steps
  int64_t user_rows;  // of x without its features: T*B, or N where packed
  View x;             // with adjacent features
  View h_0, c_0;      // contiguous, or none: zero
  View dropout_mask;

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

  Shape output_shape() const;                 // of y
  Shape state_shape(int64_t features) const;  // of h_0 and c_0
  int64_t reserve_elements() const { return reserve_size(cell, L, D, user_rows, H, P); }
  // Whether `view` has `shape` and the dtype and device of x; throws if not.
  void check(const char* name, const View& view, const Shape& shape) const;
  // Throws if there is a tensor where `what` has none.
  void check_none(const char* name, const View& view, const char* what) const;
  View with_adjacent_features(View view);

 private:
  Arguments(const Given& given, const View& x_given);
  void take_batch_sizes(View given);
  void take_lengths(View given);
  void take_resets(View given);

  const int64_t* batch_sizes_ = nullptr;  // (T), packed only
  const uint8_t* resets_ = nullptr;       // as given
};

}  // namespace seq2seq_ext
