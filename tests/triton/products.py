"""Packed weights of every layout, and the error that a product may have."""

from __future__ import annotations

import torch
from torch import Tensor

from arbllm_kernels.packed import PackedWeight

LAYOUTS = {
    "arb-rc + cgb": (21, 256, 128, {}),
    "one row": (1, 130, 64, {}),
    "short last block": (9, 200, 128, {"groups": 4}),
    "without cgb": (9, 96, 48, {"salient_groups": 1}),
    "one group": (9, 100, 32, {"groups": 1}),
    "order 1": (17, 70, 128, {"salient_order": 1}),
    "means": (9, 150, 64, {"mean": True, "col_scale": False, "salient_groups": 1}),
    "means and four groups": (5, 64, 32, {"mean": True, "col_scale": False, "groups": 4}),
    "no salient column": (9, 128, 64, {"salient": 0.0}),
    "only salient columns": (9, 128, 64, {"salient": 1.0}),
    "fp32 scales": (9, 128, 64, {"dtype": torch.float32, "exponent": -9}),
    "tiny blocks": (5, 13, 3, {}),
    "shared columns": (9, 200, 128, {"shared": True}),
    "coded row scales": (9, 130, 64, {"coded": True, "shared": True, "salient": 1.0}),
    "explicit order": (9, 128, 64, {"ordered": True, "coded": True, "exponent": 3}),
    "zero": (5, 64, 32, {"zero": True}),
}
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def assert_product(y: Tensor, x: Tensor, pw: PackedWeight, *, rounds_weights: bool, truncates: bool = False) -> None:
    """y = x W^T up to: a float32 sum in any order, one rounding of y and, with `rounds_weights`, of every weight.

    `truncates`: y is cut off instead of rounded, as Triton's interpreter does it for bfloat16.
    """
    dense, wide = pw.dequantize().to(y.device).double(), x.to(y.device).double()
    expected, size = wide @ dense.T, wide.abs() @ dense.abs().T
    unit = UNIT[x.dtype]
    bound = (
        (pw.layout.cols * 2.0**-23 + (unit if rounds_weights else 0)) * size
        + unit * (1 + truncates) * expected.abs()
        + 1e-30
    )
    assert y.dtype == x.dtype
    error = (y.double() - expected).abs()
    assert bool((error <= bound).all()), f"off by {float((error / bound).max()):.3g} times what rounding explains"
