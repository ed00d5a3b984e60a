#include "lanes.h"

#include "../vectors.inc"

#include "../classify.inc"
#include "../rank_one.inc"
#include "../search.inc"
#include "../trace.inc"
#include "../weight_levels.inc"
#include "../x_fit.inc"

const arb::SolverKernels arb::avx2_solver = {
    ::sort,          ::salient_gains, ::split_gains, ::output_costs, ::classify,       ::rank_one_take, ::rank_one_pass,
    ::rank_one_give, ::fill_basis,    ::fit_outputs, ::column_sums,  ::fit_level_rows, ::code_column};
