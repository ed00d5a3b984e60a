#include "places.h"

#include "../buffers.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::scalar_tiles = {tiles_prepare, tiles_multiply};
