// Notices that weights have changed, at a small part of the price of reading them.
//
// torch counts the changes that are made through it, but not those made through `.data`, NumPy or
// memory that is shared. So a block of packed weights comes with a fingerprint of what it was made
// of. The array is cut into units of 256 bytes, which are dealt out in turn to kSteps slices (or as
// many as there are units), and each slice has a hash. A call checks those slices that its steps
// come to pass: all of them in kSteps steps, at least one in every call. As a slice has units all
// over the array, a change of the whole of it shows in the first slice that is looked at; a change
// of one element shows before kSteps further steps have passed. For each step, that reads one in
// 1024 of the weights that the step itself reads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace seq2seq_ext {

class Fingerprint {
 public:
  static constexpr int64_t kSteps = 1024;

  // Hashes that an array of `bytes` needs; 0 for an empty one.
  static int64_t slices(size_t bytes);

  // Writes them.
  static void take(const void* array, size_t bytes, uint64_t* hashes);

  // Whether the slices of a call of `steps` steps, made after `before` steps, are still what they
  // were. Any change of a single 64-bit word changes the hash of its slice.
  static bool unchanged(const void* array, size_t bytes, const uint64_t* hashes, int64_t before,
                        int64_t steps);
};

}  // namespace seq2seq_ext
