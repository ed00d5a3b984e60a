"""The partition search under the interpreter finds what methods/partition.py finds."""

from __future__ import annotations

import pytest
import torch

from arbllm_kernels.config import QuantConfig
from arbllm_kernels.methods import partition as oracle
from arbllm_kernels.triton_kernels.choose import candidate_thresholds
from arbllm_kernels.triton_kernels.partition import partition, threshold_fractions
from arbllm_kernels.triton_kernels.sensitivity import sensitivities


def heavy(n, k):
    return torch.randn(n, k) * torch.rand(k).mul(2).exp() * torch.rand(n, 1).add(0.5)


def check(weight, d, cfg, S=None):
    found = partition(weight, d, cfg, threshold_fractions(cfg, weight.device), S)
    for i in range(len(weight)):
        expected = oracle.partition(weight[i], d[i], cfg, None if S is None else S[i])
        assert torch.equal(found.salient[i].bool(), expected.salient)
        assert torch.equal(found.group[i].long(), expected.group)
        zone = torch.where(expected.salient, expected.group, cfg.salient_groups + expected.group)
        assert torch.equal(found.zone[i].long(), zone)


CASES = {
    "one row": (1, 24, {}),
    "odd": (19, 40, {}),
    "two columns": (7, 2, {}),
    "without cgb": (9, 24, {"cgb": False}),
    "four groups": (9, 24, {"groups": 4}),
    "one group": (9, 24, {"groups": 1}),
    "magnitude": (9, 24, {"metric": "magnitude"}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_partition(name):
    n, k, knobs = CASES[name]
    cfg = QuantConfig(**{"max_salient": 12, "thresholds": 21, **knobs})
    check(heavy(n, k)[None], torch.rand(1, k).add(0.2), cfg)


def test_a_batch_with_zero_rows_and_columns():
    weight = torch.stack([heavy(6, 32), heavy(6, 32)])
    weight[0, 2] = 0
    weight[0, :, ::3] = 0
    check(weight, torch.rand(2, 32).add(0.2), QuantConfig(max_salient=9, thresholds=11))


def test_the_knobs_of_the_paper():
    check(heavy(6, 64)[None], torch.rand(1, 64).add(0.2), QuantConfig())


@pytest.mark.parametrize("groups", [2, 4])
def test_splits_judged_by_the_output(groups):
    cfg = QuantConfig(method="arb-x", groups=groups, cgb=False, max_salient=9, thresholds=15, iters=2)
    x = torch.randn(100, 40) @ torch.randn(40, 40) + 8.0
    weight, d, S = heavy(13, 40)[None], torch.rand(1, 40).add(0.2), (x.T @ x / 3)[None]
    check(weight, d, cfg, S)
    by_weight = partition(weight, d, cfg, threshold_fractions(cfg, weight.device))
    by_output = partition(weight, d, cfg, threshold_fractions(cfg, weight.device), S)
    assert groups == 2 or not torch.equal(by_weight.group, by_output.group), "the data must tell the searches apart"


def test_one_column_is_never_salient_and_its_splits_all_tie():
    cfg = QuantConfig(thresholds=5)
    found = partition(heavy(7, 1)[None], torch.ones(1, 1), cfg, threshold_fractions(cfg, torch.device("cpu")))
    assert not found.salient.any()
    assert found.zone.min() >= 2 and found.zone.max() <= 3


def test_all_zero():
    check(torch.zeros(1, 5, 20), torch.ones(1, 20), QuantConfig(max_salient=6, thresholds=5))


def test_sensitivities_and_thresholds_have_the_bits_of_the_oracle():
    weight, d = heavy(21, 30), torch.rand(30) + 0.2
    s, rank = sensitivities(weight[None], d[None], True)
    assert torch.equal(s[0], (weight / d).square())
    assert torch.equal(rank[0].long().argsort(), s[0].abs().sum(0).argsort(descending=True, stable=True))
    salient = (torch.rand(1, 30) < 0.3).to(torch.uint8)
    group = torch.randint(0, 2, (1, 21, 30), dtype=torch.uint8)
    members = (salient[:, None] == 1) & (group == 1)
    fractions = threshold_fractions(QuantConfig(), s.device)
    nonzero = candidate_thresholds(s, salient, group, fractions, 1, 1, nonzero=True)
    assert torch.equal(nonzero[0], oracle.quantiles(s[members & (s != 0)], 81))
    members = (salient[:, None] == 0) & (group == 0)
    everything = candidate_thresholds(s, salient, group, fractions, 0, 0, nonzero=False)
    assert torch.equal(everything[0], oracle.quantiles((s * members).flatten(), 81))
