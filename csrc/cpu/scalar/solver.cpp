#include "lanes.h"

#include "../vectors.inc"

#include "../rank_one.inc"
#include "../search.inc"

const arb::SolverKernels arb::scalar_solver = {sort, salient_gains, split_gains, rank_one_pass};
