// The arguments of the operators, on whatever device, from what a caller hands over to what has
// been checked. Nothing is allocated for a check unless it fails, and no value that lies on another
// device than the CPU is looked at.
#pragma once

#include <cstdint>
#include <new>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../cells.h"
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

// The cell with that number, among those that need no variant; throws if there is none.
Cell cell_of(int64_t code);

// As they come. An empty handle stands for None.
struct Given {
  Handle x, h_0, c_0;
  std::vector<Handle> weights;
  int64_t cell = 0, num_layers = 1;
  bool bidirectional = false;
  Handle lengths, batch_sizes, resets, dropout_mask;
};

// Steps as rows of a table: what prepack_tokens made of an embedding.
struct TokenRows {
  View embedding;         // (V, I)
  View packed;            // of it and of the layers
  const int64_t* tokens;  // (T, B)
};

// What a call of rnn and one of rnn_backward hand over, in the order of ops.cpp.
struct ForwardGiven : Given {
  bool save = false;
  Handle packed;
  int64_t turn = 0;
  bool allow_tf32 = false;
  const TokenRows* rows = nullptr;  // in place of x, of which only the shape is read then

  ForwardGiven() = default;
  explicit ForwardGiven(const StableIValue* stack);
};

struct BackwardGiven : Given {
  Handle d_y, d_h_n, d_c_n;
  Handle y, reserve;
  bool input_grad, state_grad, weight_grad;
  bool allow_tf32;

  explicit BackwardGiven(const StableIValue* stack);
};

// What x holds.
enum class Form {
  kDense,   // (T, B, I)
  kPacked,  // (N, I), with batch_sizes
  kStep     // (B, I): one step of one layer, whose states have no axis of layers
};

// What all tensors of a call have to agree on.
struct Common {
  int32_t dtype;
  int32_t computed;  // what the kernels calculate in: on the CPU float32 for 16-bit floats
  Device device;

  // Of the dtype and on the device of x; throws if that is none of those that there are kernels
  // for. `name` is what messages call it.
  explicit Common(const View& x, const char* name = "x");

  bool in_float() const { return computed == aoti_torch_dtype_float32(); }

  // Whether `view` has `shape` and the dtype and device of x; throws if not.
  void check(const char* name, const View& view, const Shape& shape) const;
  // The same of what one kernel left for another, in the dtype `computed`.
  void check_kept(const char* name, const View& view, const Shape& shape) const;
  // The tensor, or a copy of it that lives as long as this.
  View contiguous(View view);
  // The same, in the dtype `computed` if it was in that of x.
  View widened(View view);
  // The same, but rows may lie anywhere.
  View with_adjacent_features(View view);
  // A tensor of int64, contiguous, of numbers from 0 to `most`; or none. It lies on the CPU, or on
  // the device of x, where nobody has looked at the numbers.
  View integers(const char* name, View view, const Shape& shape, int64_t most);

 private:
  std::vector<Handle> copies_;
};

// The steps of a call, of whatever lengths.
struct Batch {
  View x;
  Form form;
  int64_t T, B;
  int64_t N;          // valid steps; T*B where lengths_on_device knows better
  int64_t user_rows;  // of x without its features: T*B, or N where packed

  const int64_t* lengths = nullptr;      // (B) as given on the CPU; null: all T, or on the device
  const int64_t* batch_sizes = nullptr;  // (T), packed only
  View lengths_on_device;                // (B) int64, whose values nobody has checked
  View resets;                           // contiguous, (T, B) or (N)

  explicit Batch(const View& x) : x(x) {}

  // (T, B, features), without what the form does not have.
  Shape rows_shape(int64_t features) const;
  void take_batch_sizes(Common& common, const View& given);
  void take_lengths(Common& common, const View& given);
  void take_resets(Common& common, const View& given);
};

// A stack of layers: sizes and weights.
struct Layers : Common {
  Cell cell;
  int64_t I, H, P, L, D;
  bool bias, projected;
  std::vector<const void*> given;    // where the weights lie
  std::vector<const void*> weights;  // and contiguous, `roles()` to a layer and direction; of dtype

  // Layers for an input of `I` features, of the dtype and on the device of `like`. Throws
  // std::runtime_error naming the argument that is wrong.
  Layers(const std::vector<Handle>& weights, int64_t cell, int64_t num_layers, bool bidirectional,
         const View& like, int64_t I);

  int64_t roles() const { return 2 + (bias ? 2 : 0) + (projected ? 1 : 0); }
  // Shape of weight `role` of the layer.
  Shape weight_shape(int64_t layer, int64_t role) const;
  size_t weight_bytes(int64_t index) const;
  // Lets `weights` be as the kernels read them, in the dtype `computed`.
  void widen_weights(const std::vector<Handle>& tensors);
};

struct Arguments : Layers, Batch {
  View h_0, c_0;  // contiguous, or none: zero
  View dropout_mask;

  // Throws std::runtime_error naming the argument that is wrong. Keeps pointers into `given`.
  explicit Arguments(const Given& given);

  Shape output_shape() const { return rows_shape(D * P); }  // of y
  Shape state_shape(int64_t features) const;                // of h_0 and c_0
  int64_t reserve_elements() const { return reserve_size(cell, L, D, user_rows, H, P); }
  // Throws if there is a tensor where `what` has none.
  void check_none(const char* name, const View& view, const char* what) const;

 private:
  Arguments(const Given& given, const View& x_given);
};

// The tensors of a call of rnn_backward beside those of Arguments: gradients of outputs, an empty
// one being zero, and what forward left.
struct Cotangents {
  View y, h_n, c_n;

  Cotangents(const BackwardGiven& given, const Arguments& a);  // checks them
};

// Results of the two operators, allocated, in the order of ops.cpp; empty where there is none. The
// kernels write them in the dtype `computed`; `put` rounds all but the reserve to that of x.
struct Outputs {
  int32_t dtype;
  Handle y, h_n, c_n, reserve;

  Outputs(const Arguments& a, bool save);
  void put(StableIValue* stack) &&;  // in the place of the arguments
};

struct Gradients {
  int32_t dtype;
  bool input_wanted, state_wanted, weights_wanted;
  Handle x, h_0, c_0;
  std::vector<Handle> weights;

  Gradients(const Arguments& a, const BackwardGiven& given);
  void put(StableIValue* stack) &&;
};

// Runs an operator; what ends it otherwise becomes a RuntimeError that a user can read.
template <typename Body>
void with_readable_errors(const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("not enough memory for the call");
  }
}

}  // namespace seq2seq_ext
