"""Triton kernels: the solver and the packed products for CUDA tensors. One file per kernel, each with its plain oracle.

| file | what one launch does | oracle |
|---|---|---|
| arb.py | BiLLM, ARB or ARB-X, all iterations, all zones | methods/billm.py, arb.py, arb_x.py |
| arb_rc.py | half an iteration of ARB-RC, all zones | methods/arb_rc.py |
| sensitivity.py | s = (w / d)^2 and the rank of the columns | methods/partition.py |
| search.py, output_search.py | what every candidate of the partition search gains | methods/partition.py |
| choose.py | thresholds; the best candidate, acted on | methods/partition.py |
| rounding.py | the block as stored, and the error to propagate | block.py |
| gemv.py, gemm.py, dequantize.py | a product with, or the values of, a packed weight | packed.py |

partition.py and solve.py string them together without waiting for the device. Beside them: stack.py (matrices of any
heights in one launch), nearest.py (the nearest of four levels), weight_tile.py (bits to values), scales.py (what a
refinement returns), configs.py (every tile size), launch.py (where kernels start).

Importing this folder imports Triton; the rest of the package does so only when a CUDA tensor or backend="triton" asks.
"""
