#include "places.h"

#include "../buffers.inc"
#include "../float_lanes.inc"
#include "../tile_places.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::avx512vbmi_tiles = {kLookupBytes, gather_row, tiles_prepare, tiles_multiply};
