#include "dot.h"

#include "../buffers.inc"
#include "../tile_codes.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::neondot_tiles = {kLookupBytes, tiles_prepare, tiles_multiply};
