"""QuantConfig: one test per rule."""

from __future__ import annotations

import dataclasses
import json

import pytest

from arbllm_kernels.config import METHODS, QuantConfig
from arbllm_kernels.errors import InputError


def test_the_default_is_the_papers_recommended_method():
    config = QuantConfig()
    assert (config.method, config.cgb, config.block_size, config.iters) == ("arb-rc", True, 128, 15)
    assert config.label == "ARB-RC + CGB"
    assert config.has_column_scales and config.salient_groups == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cgb", [True, False])
def test_survives_json(method, cgb):
    config = QuantConfig(method=method, cgb=cgb, groups=4)
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.salient_groups == (4 if cgb else 1)


@pytest.mark.parametrize(("method", "label"), [("billm", "BiLLM"), ("arb", "ARB"), ("arb-x", "ARB-X")])
def test_labels(method, label):
    assert QuantConfig(method=method, cgb=False).label == label


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "rtn4"), ("metric", "hesian"), ("scale_dtype", "bf16"), ("groups", 3), ("salient_order", 0),
        ("cgb", "yes"), ("block_size", 0), ("block_size", 65537), ("block_size", 128.0), ("iters", -1),
        ("iters", True), ("max_salient", 1), ("thresholds", 0), ("damp", -0.1), ("damp", float("nan")),
        ("damp", float("inf")), ("damp", True), ("damp", "0.01"), ("damp", None), ("groups", 2.0), ("cgb", 1),
        ("salient_order", True), ("method", ["arb"]),
    ],
)  # fmt: skip
def test_refuses_values_of_the_wrong_type_or_out_of_range(field, value):
    with pytest.raises(InputError, match=rf"QuantConfig\.{field} = "):
        QuantConfig(**{field: value})


def test_refuses_unknown_fields():
    with pytest.raises(InputError, match=r"unknown QuantConfig fields \['bits'\].*newer version"):
        QuantConfig.from_dict({"bits": 2})


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().iters = 3
