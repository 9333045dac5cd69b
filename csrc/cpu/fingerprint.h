// Notices that weights have changed, at a small part of the price of reading them.
//
// torch counts the changes that are made through it, but not those made through `.data`, NumPy or
// memory that is shared. So a block of packed weights comes with a fingerprint of what it was made
// of. The array is cut into units of 256 bytes, which are dealt out in turn to kSlices slices (or
// as many as there are units), and each slice has a hash. A call checks as many slices as it has
// steps, from where the last call stopped: for each step it reads one in 1024 of the weights that
// the step itself reads. As a slice has units all over the array, a change of the whole of it shows
// in the first slice that is looked at; a change of one element shows before 1024 steps have passed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace seq2seq_ext {

class Fingerprint {
 public:
  static constexpr int64_t kSlices = 1024;

  // Hashes that an array of `bytes` needs; 0 for an empty one.
  static int64_t slices(size_t bytes);

  // Writes them.
  static void take(const void* array, size_t bytes, uint64_t* hashes);

  // Whether slices first, first + 1, ... (modulo their number), `count` of them at most, are still
  // what they were. Any change of a single 64-bit word changes the hash of its slice.
  static bool unchanged(const void* array, size_t bytes, const uint64_t* hashes, int64_t first,
                        int64_t count);
};

}  // namespace seq2seq_ext
