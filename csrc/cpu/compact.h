// A checked call with the tables of the compact order (kernels.h), and pointers to its layers, as
// the kernels read them. A dense batch needs no table beyond two numbers for each step.
#pragma once

#include <cstdint>

#include "../glue/arguments.h"
#include "kernels.h"
#include "scratch.h"

namespace seq2seq_ext {

struct CompactArguments : Arguments {
  using Arguments::Arguments;

  // Makes the tables below, which live as long as the frame. Apart from the checks, so that tensors
  // too large for the memory are refused before anything of their size is written.
  void arrange(Scratch::Frame& frame);

  const int64_t* active = nullptr;  // as in Sequence, like all to reset
  const int64_t* offset = nullptr;
  const int64_t* source = nullptr;
  const uint8_t* reset = nullptr;
  const int64_t* row = nullptr;  // (N) where the caller has compact row r, t * B + b; null: at r
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

}  // namespace seq2seq_ext
