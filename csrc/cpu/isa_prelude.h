// All that the kernels use from outside, to be included before a target is set: see isa.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dispatch.h"
#include "kernels.h"
#include "narrow_product.h"
#include "row_tiles.h"
