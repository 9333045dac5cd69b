// Sizes of a product as the compiler wants them: heights of tiles and widths of panels as types.
#pragma once

#include <cstdint>
#include <type_traits>

namespace seq2seq_ext {

// Calls with a number of vectors, 1 to 4, as a type.
template <typename Call>
void with_vectors(int64_t vectors, const Call& call) {
  switch (vectors) {
    case 1:
      return call(std::integral_constant<int, 1>{});
    case 2:
      return call(std::integral_constant<int, 2>{});
    case 3:
      return call(std::integral_constant<int, 3>{});
    default:
      return call(std::integral_constant<int, 4>{});
  }
}

// Cuts rows into tiles of heights as equal as can be, at most `most`, and calls tile(row, height)
// with the height as a type.
template <int most, typename Tile, int height = most>
void tile_of_height(int64_t row, int64_t rows, const Tile& tile) {
  if (rows == height) return tile(row, std::integral_constant<int, height>{});
  if constexpr (height > 1) tile_of_height<most, Tile, height - 1>(row, rows, tile);
}
template <int most, typename Tile>
void for_tiles(int64_t rows, const Tile& tile) {
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = rows * i / tiles;
    tile_of_height<most>(row, rows * (i + 1) / tiles - row, tile);
  }
}

}  // namespace seq2seq_ext
