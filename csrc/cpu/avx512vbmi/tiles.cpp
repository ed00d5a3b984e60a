#include "places.h"

#include "../buffers.inc"
#include "../tiles.inc"

const arb::TilesKernels arb::avx512vbmi_tiles = {tiles_prepare, tiles_multiply};
