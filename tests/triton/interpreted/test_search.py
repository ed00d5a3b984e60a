"""The partition search under the interpreter finds what methods/partition.py finds."""

from __future__ import annotations

import pytest
import torch

from arbllm_kernels.config import QuantConfig
from arbllm_kernels.methods import partition as oracle
from arbllm_kernels.triton_kernels.choose import candidate_thresholds
from arbllm_kernels.triton_kernels.partition import partition, threshold_fractions
from arbllm_kernels.triton_kernels.sensitivity import sensitivities
from arbllm_kernels.triton_kernels.stack import Stack


def heavy(n, k):
    return torch.randn(n, k) * torch.rand(k).mul(2).exp() * torch.rand(n, 1).add(0.5)


def search(weights, d, cfg, S=None):
    stack = Stack.of([len(w) for w in weights], "cpu")
    return partition(torch.cat(weights), stack, d, cfg, threshold_fractions(cfg, d.device), S), stack


def check(weights, d, cfg, S=None):
    found, stack = search(weights, d, cfg, S)
    for i, weight in enumerate(weights):
        expected = oracle.partition(weight, d[i], cfg, None if S is None else S[i])
        assert torch.equal(found.salient[i].bool(), expected.salient)
        assert torch.equal(found.group[stack.span(i)].long(), expected.group)
        zone = torch.where(expected.salient, expected.group, cfg.salient_groups + expected.group)
        assert torch.equal(found.zone[stack.span(i)].long(), zone)


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
    check([heavy(n, k)], torch.rand(1, k).add(0.2), cfg)


def test_matrices_of_all_heights_with_zero_rows_and_columns(poisoned):
    weights = [heavy(6, 32), heavy(33, 32), heavy(1, 32), torch.zeros(17, 32), heavy(6, 32)]
    weights[0][2] = 0
    weights[0][:, ::3] = 0
    check(weights, torch.rand(5, 32).add(0.2), QuantConfig(max_salient=9, thresholds=11))


def test_the_knobs_of_the_paper():
    check([heavy(6, 64)], torch.rand(1, 64).add(0.2), QuantConfig())


@pytest.mark.parametrize("groups", [2, 4])
def test_splits_judged_by_the_output(groups):
    cfg = QuantConfig(method="arb-x", groups=groups, cgb=False, max_salient=9, thresholds=15, iters=2)
    x = torch.randn(100, 40) @ torch.randn(40, 40) + 8.0
    weights, d, S = [heavy(13, 40), heavy(3, 40)], torch.rand(2, 40).add(0.2), (x.T @ x / 3).repeat(2, 1, 1)
    check(weights, d, cfg, S)
    by_weight, by_output = search(weights, d, cfg)[0], search(weights, d, cfg, S)[0]
    assert groups == 2 or not torch.equal(by_weight.group, by_output.group), "the data must tell the searches apart"


def test_one_column_is_never_salient_and_its_splits_all_tie():
    cfg = QuantConfig(thresholds=5)
    found, _ = search([heavy(7, 1)], torch.ones(1, 1), cfg)
    assert not found.salient.any()
    assert found.zone.min() >= 2 and found.zone.max() <= 3


def test_all_zero():
    check([torch.zeros(5, 20)], torch.ones(1, 20), QuantConfig(max_salient=6, thresholds=5))


def test_sensitivities_and_thresholds_have_the_bits_of_the_oracle():
    weight, d, stack = heavy(26, 30), torch.rand(2, 30) + 0.2, Stack.of([21, 5], "cpu")
    s, rank = sensitivities(weight, stack, d, True)
    salient = (torch.rand(2, 30) < 0.3).to(torch.uint8)
    group = torch.randint(0, 2, (26, 30), dtype=torch.uint8)
    fractions = threshold_fractions(QuantConfig(), s.device)
    nonzero = candidate_thresholds(s, stack, salient, group, fractions, 1, 1, nonzero=True)
    everything = candidate_thresholds(s, stack, salient, group, fractions, 0, 0, nonzero=False)
    for i in range(2):
        rows, own = stack.span(i), s[stack.span(i)]
        assert torch.equal(own, (weight[rows] / d[i]).square())
        assert torch.equal(rank[i].long().argsort(), own.abs().sum(0).argsort(descending=True, stable=True))
        members = (salient[i] == 1) & (group[rows] == 1)
        assert torch.equal(nonzero[i], oracle.quantiles(own[members & (own != 0)], 81))
        members = (salient[i] == 0) & (group[rows] == 0)
        assert torch.equal(everything[i], oracle.quantiles((own * members).flatten(), 81))
