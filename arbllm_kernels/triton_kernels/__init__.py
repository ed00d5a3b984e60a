"""Triton kernels: the solver and the packed products for CUDA tensors. One file per kernel, each with its plain oracle.

| file | what one launch does | oracle |
|---|---|---|
| arb_rc.py | half an iteration of ARB-RC, all zones and matrices | methods/arb_rc.py |

Beside them: nearest.py (the nearest of four levels), scales.py (what a refinement returns), configs.py (every tile
size) and launch.py (the one place where kernels are started).

Importing this folder imports Triton; the rest of the package does so only when a CUDA tensor or backend="triton" asks.
"""
