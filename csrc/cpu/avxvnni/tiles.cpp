#include "dot.h"

#include "../buffers.inc"
#include "../tile_codes.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::avxvnni_tiles = {kLookupBytes, gather_row, tiles_prepare, tiles_multiply};
