#include "places.h"

#include "../buffers.inc"
#include "../tile_places.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::scalar_tiles = {kLookupBytes, gather_row, tiles_prepare, tiles_multiply};
