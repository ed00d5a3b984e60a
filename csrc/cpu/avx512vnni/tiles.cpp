#include "dot.h"

#include "../buffers.inc"
#include "../tile_codes.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::avx512vnni_tiles = {kLookupBytes, gather_row, tiles_prepare, tiles_multiply};
