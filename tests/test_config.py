"""QuantConfig: one test per rule."""

from __future__ import annotations

import dataclasses
import json

import pytest

from arbllm_kernels.config import METHODS, PAPER_METHODS, QuantConfig
from arbllm_kernels.errors import InputError


def test_the_default_is_the_papers_recommended_method():
    config = QuantConfig()
    assert (config.method, config.cgb, config.block_size, config.iters) == ("arb-rc", True, 128, 15)
    assert config.label == "ARB-RC + CGB"
    assert config.has_column_scales and config.salient_groups == 2


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize("cgb", [True, False])
def test_survives_json(method, cgb):
    config = QuantConfig(method=method, cgb=cgb, groups=4)
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.salient_groups == (4 if cgb else 1)


def test_a_config_of_the_paper_is_written_as_before_there_were_other_methods():
    values = QuantConfig().to_dict()
    assert not {"bits", "sweeps", "sequential", "correction"} & set(values)
    best = QuantConfig.preset("best").to_dict()
    assert best["bits"] == 2.9 and "sweeps" not in best
    assert QuantConfig.from_dict(best) == QuantConfig.preset("best")


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
        ("salient_order", True), ("method", ["arb"]), ("bits", 2.3), ("sweeps", -1),
        ("sequential", 1), ("correction", 1.5), ("correction", True),
    ],
)  # fmt: skip
def test_refuses_values_of_the_wrong_type_or_out_of_range(field, value):
    with pytest.raises(InputError, match=rf"QuantConfig\.{field} = "):
        QuantConfig(**{field: value})


@pytest.mark.parametrize("values", [{"bits": 1.9}, {"bits": "3"}, {"groups": 4}, {"salient_order": 1}, {"cgb": False}])
def test_levels_have_one_storage_and_at_least_two_bits(values):
    with pytest.raises(InputError, match=r"bits = |needs groups = 2"):
        QuantConfig(method="arb-levels", **values)


def test_presets():
    assert QuantConfig.preset("paper") == QuantConfig()
    best, compact = QuantConfig.preset("best"), QuantConfig.preset("compact")
    assert (best.method, best.bits, compact.bits) == ("arb-levels", 2.9, 2.3)
    assert dataclasses.replace(best, bits=2.3) == compact
    assert "arb-levels" in METHODS and best.label == "ARB-levels, 2.9 bits"
    with pytest.raises(InputError, match="paper, best, compact"):
        QuantConfig.preset("fast")


def test_refuses_unknown_fields():
    with pytest.raises(InputError, match=r"unknown QuantConfig fields \['colour'\].*newer version"):
        QuantConfig.from_dict({"colour": 2})


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().iters = 3
