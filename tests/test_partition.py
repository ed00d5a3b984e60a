"""The prefix-sum search finds what the direct search finds: the same columns, the same thresholds, the same groups."""

import direct_search
import pytest
import torch

from arbllm_kernels.config import QuantConfig
from arbllm_kernels.methods.partition import partition, quantiles, salient_columns

SHAPES = [(1, 128), (7, 128), (64, 72), (33, 30), (66, 128)]


def problem(n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heavy-tailed weights with column structure, the diagonal of U, and S; float64, so rounding decides nothing."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * k, k, generator=g, dtype=torch.float64) * (torch.rand(k, generator=g).double() * 2 + 0.1)
    weight = torch.randn(n, k, generator=g, dtype=torch.float64) * torch.rand(k, generator=g).double().exp()
    d = 0.5 + torch.rand(k, generator=g).double()
    return weight, d, x.T @ x / 4


@pytest.mark.parametrize("metric", ["hessian", "magnitude"])
@pytest.mark.parametrize(("groups", "cgb"), [(1, False), (2, False), (2, True), (4, True)])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_same_partition_as_the_direct_search(n, k, groups, cgb, metric):
    weight, d, _ = problem(n, k)
    cfg = QuantConfig(groups=groups, cgb=cgb, metric=metric)
    salient, group = direct_search.partition(weight, d, cfg)
    found = partition(weight, d, cfg)
    assert torch.equal(found.salient, salient)
    if not torch.equal(found.group, group):  # zones of a few entries are fitted exactly by several thresholds: a tie
        s = (weight / d).square() if metric == "hessian" else weight
        errors = [direct_search.squared_error(s, direct_search.zones(salient, g, groups)) for g in (found.group, group)]
        assert groups == 4
        assert errors[0] == pytest.approx(errors[1], rel=1e-12)


@pytest.mark.parametrize(
    ("n", "k", "groups", "cgb"),
    [
        (1, 128, 2, False),
        (1, 128, 2, True),
        (7, 40, 2, True),
        (33, 128, 2, False),
        (33, 128, 2, True),
        (33, 128, 4, True),
    ],
)
def test_arb_x_same_partition_as_the_direct_search(n, k, groups, cgb):
    weight, d, S = problem(n, k, seed=1)
    cfg = QuantConfig(method="arb-x", groups=groups, cgb=cgb)
    salient, group = direct_search.partition(weight, d, cfg, S)
    found = partition(weight, d, cfg, S)
    assert torch.equal(found.salient, salient)
    assert torch.equal(found.group, group)


def test_the_search_is_not_trivial():
    """The problems above have salient columns and both groups in use, and another block another answer."""
    chosen = [partition(*problem(64, 128, seed)[:2], QuantConfig()) for seed in (0, 1)]
    for p in chosen:
        assert 1 <= int(p.salient.sum()) < 50
        assert set(p.group[:, ~p.salient].unique().tolist()) == {0, 1}
        assert set(p.group[:, p.salient].unique().tolist()) == {0, 1}
    assert not torch.equal(chosen[0].salient, chosen[1].salient)


def test_more_rows_than_one_chunk_of_the_column_search(monkeypatch):
    weight, d, _ = problem(70, 64)
    whole = salient_columns((weight / d).square(), 50)
    monkeypatch.setattr("arbllm_kernels.methods.partition.ROWS_AT_ONCE", 16)
    assert torch.equal(salient_columns((weight / d).square(), 50), whole)


@pytest.mark.parametrize(("k", "expected"), [(1, 0), (2, 1)])
def test_narrow_blocks(k, expected):
    """One column leaves nothing to compare, so none is salient; of two, one is."""
    weight, d, _ = problem(5, k)
    assert int(partition(weight, d, QuantConfig()).salient.sum()) == expected


def test_all_zero_block_has_one_group():
    p = partition(torch.zeros(4, 16), torch.ones(16), QuantConfig())
    assert int(p.group.max()) in (0, 1)
    assert p.group.shape == (4, 16)


@pytest.mark.parametrize("size", [1, 2, 99, 1000])
def test_quantiles_are_torch_quantiles(size):
    values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(quantiles(values, 81), direct_search.reference_quantiles(values, 81))
