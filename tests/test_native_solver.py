"""The native solver finds what methods/ finds: the same gains, thresholds, columns and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import direct_search
import pytest
import torch
from torch import Tensor

from arbllm_kernels import native_solver as native
from arbllm_kernels.config import PAPER_METHODS, QuantConfig
from arbllm_kernels.errors import InputError
from arbllm_kernels.methods import arb_x, hessian_factor, quantize_weight, solve
from arbllm_kernels.methods import partition as oracle
from arbllm_kernels.methods.binarize import Fit, Zone
from arbllm_kernels.methods.solve import BINARIZERS, TORCH, _backend
from arbllm_kernels.native import active_isa, available_isas, forced_isa

SHAPES = [(1, 1), (1, 2), (5, 2), (1, 128), (33, 30), (7, 72), (66, 128), (17, 256)]
TIE = 1e-12  # two candidates whose gains agree to this may be told apart differently


def heavy(n: int, k: int) -> Tensor:
    """w^2 / d^2 as the solver meets it: heavy-tailed, with column structure."""
    weight = torch.randn(n, k) * torch.rand(k).mul(2).exp() * torch.rand(n, 1).add(0.5)
    return (weight / (0.2 + torch.rand(k))).square()


def with_zeros(n: int, k: int) -> Tensor:
    s = heavy(n, k)
    s[:, ::3] = 0
    s[::4] = 0
    return s


KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "heavy": heavy,
    "signed": lambda n, k: torch.randn(n, k) * torch.rand(k).exp(),
    "with zeros": with_zeros,
    "zero": torch.zeros,
    "ties": lambda n, k: torch.randint(-2, 3, (n, k)).float(),
    "constant rows": lambda n, k: torch.rand(n, 1).expand(n, k).contiguous(),
    "huge": lambda n, k: heavy(n, k) * 1e30,
    "tiny": lambda n, k: heavy(n, k) * 1e-40,
    "mixed magnitudes": lambda n, k: torch.randn(n, k).mul(20).clamp(max=80).exp(),
}
ON_CPU = ("auto", "native", "torch")  # backends; tests/triton has the other
ROUNDING_DECIDES = {"ties", "constant rows", "zero"}  # kinds made of ties


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def torch_gains(monkeypatch: pytest.MonkeyPatch, search: Callable[[], object]) -> Tensor:
    """The gains that a search of methods/partition.py sums up: those of its two parts, over all chunks of rows."""
    parts: list[Tensor] = []

    def recorded(*args: object, **kwargs: object) -> Tensor:
        parts.append(torch_partition_gain(*args, **kwargs))
        return parts[-1]

    torch_partition_gain = oracle.gain
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "gain", recorded)
        search()
    return torch.stack(parts).sum(0)


def assert_same_choice(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11 * float(expected.abs().max()))
    if int(found.argmax()) != int(expected.argmax()):
        assert float(expected[found.argmax()]) >= float(expected.max()) * (1 - TIE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("limit", [2, 50])
def test_gains_of_salient_columns(n, k, limit, kind, monkeypatch):
    s = KINDS[kind](n, k)
    ranked = s.abs().sum(0).argsort(descending=True, stable=True)[:limit]
    if len(ranked) < 2:
        assert not bool(native.salient_columns(s, limit).any())
        return
    expected = torch_gains(monkeypatch, lambda: oracle.salient_columns(s, limit))
    assert_same_choice(native.salient_gains(s, ranked), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_gains_of_splits(n, k, order, masked, kind, monkeypatch):
    s = KINDS[kind](n, k)
    members = torch.rand(n, k) < 0.6 if masked else torch.ones(n, k, dtype=torch.bool)
    thresholds = oracle.quantiles(s.abs()[members], 81)
    expected = torch_gains(monkeypatch, lambda: oracle.split(s, members, thresholds, order))
    found = native.split_gains(s, members if masked else None, thresholds, order)
    assert_same_choice(found, expected)


def direct_output_costs(
    s: Tensor, columns: Tensor, members: Tensor, thresholds: Tensor, residual: Tensor, S: Tensor
) -> Tensor:
    """tr(R S R^T) for every threshold, in double; each side keeps its mean and scale."""
    costs = []
    for t in thresholds.double():
        R = residual.double()
        own = R[:, columns]
        for side in (members & (s.abs() >= t), members & (s.abs() < t)):
            fit = BINARIZERS["billm"](Zone(s.double(), side), 1, 0)
            own = torch.where(side, s - fit.values(), own)
        R[:, columns] = own
        costs.append(((R @ S.double()) * R).sum())
    return torch.stack(costs)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"huge", "tiny"}))
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 2), (7, 72), (33, 130), (5, 400)])
@pytest.mark.parametrize("masked", [False, True])
def test_costs_of_splits_by_output(n, k, masked, kind):
    block, x = KINDS[kind](n, k), torch.randn(3 * k, k) + 0.5
    S = x.T @ x / 3
    columns = torch.arange(k)[torch.arange(k) % 5 != 2]
    s = block[:, columns]
    members = torch.rand(s.shape) < 0.7 if masked else torch.ones(s.shape, dtype=torch.bool)
    residual = torch.randn(n, k) * s.abs().mean()
    residual[:, columns] *= ~members
    thresholds = native.quantiles(s, members, block.numel(), 81)
    expected = direct_output_costs(s, columns, members, thresholds, residual, S)
    found = native.output_costs(s, columns, members, thresholds, residual, S)
    scale = float(((s * members).double().square().sum() + residual.double().square().sum()) * S.abs().max() * k)
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=0, atol=1e-7 * scale)
    assert float(expected[found.argmin()] - expected.min()) <= 1e-7 * scale


def output_costs(s: Tensor, members: Tensor) -> Tensor:
    """Costs of 81 splits for inputs that depend on the shape of s alone."""
    torch.manual_seed(2)
    columns, x = torch.arange(1, s.shape[1] + 1), torch.randn(2 * s.shape[1], s.shape[1] + 2)
    residual = torch.randn(s.shape[0], s.shape[1] + 2)
    residual[:, 1:-1] *= ~members
    return native.output_costs(s, columns, members, native.quantiles(s, members, None, 81), residual, x.T @ x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("number", [1, 81])
def test_quantiles_are_the_same_bits(n, k, number, kind):
    s = KINDS[kind](n, k)
    for members in (None, torch.rand(n, k) < 0.5, torch.zeros(n, k, dtype=torch.bool)):
        inside = torch.ones(n, k, dtype=torch.bool) if members is None else members
        assert torch.equal(
            native.quantiles(s, members, None, number), oracle.quantiles(s.abs()[inside & (s != 0)], number)
        )
        with_salient = torch.cat([(s.abs() * inside).flatten(), torch.zeros(3 * n)])
        assert torch.equal(
            native.quantiles(s, members, with_salient.numel(), number), oracle.quantiles(with_salient, number)
        )


@pytest.mark.parametrize("kind", sorted(set(KINDS) - ROUNDING_DECIDES))
@pytest.mark.parametrize(("groups", "cgb"), [(1, False), (2, False), (2, True), (4, True)])
@pytest.mark.parametrize("metric", ["hessian", "magnitude"])
@pytest.mark.parametrize(("n", "k"), [(40, 1), (40, 2), (66, 128), (31, 72)])
def test_same_partition(n, k, metric, groups, cgb, kind):
    s = KINDS[kind](n, k)
    weight = s.abs().sqrt() if metric == "hessian" else s
    cfg = QuantConfig(groups=groups, cgb=cgb, metric=metric)
    expected, found = (p(weight, torch.ones(k), cfg) for p in (oracle.partition, native.partition))
    assert torch.equal(found.salient, expected.salient)
    if not torch.equal(found.group, expected.group):  # few entries are fitted exactly by several thresholds: a tie
        s = (weight.square() if metric == "hessian" else weight).double()
        zones = [direct_search.zones(expected.salient, p.group, groups) for p in (found, expected)]
        errors = [direct_search.squared_error(s, z) for z in zones]
        assert k <= 2 or groups == 4
        assert abs(errors[0] - errors[1]) <= TIE * float(s.square().sum())


def test_wide_blocks():
    """Nothing is sized by a usual k."""
    s = heavy(3, 5000)
    cfg = QuantConfig(block_size=65536, metric="magnitude", max_salient=20, thresholds=7)
    expected, found = (p(s, torch.ones(5000), cfg) for p in (oracle.partition, native.partition))
    assert torch.equal(found.salient, expected.salient)
    assert torch.equal(found.group, expected.group)


def test_threads_change_no_digit(threads, monkeypatch):
    """Of native code: BLAS, which keeps one thread here, may sum in another order with more."""
    torch.manual_seed(1)
    s = heavy(5000, 40)  # more rows than 256 chunks of 16
    ranked = s.sum(0).argsort(descending=True)
    thresholds = native.quantiles(s, None, None, 81)
    torch.set_num_threads(1)
    members = torch.rand(s.shape) < 0.8
    alone = native.salient_gains(s, ranked), native.split_gains(s, None, thresholds, 2), output_costs(s, members)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(native.salient_gains(s, ranked), alone[0])
    assert torch.equal(native.split_gains(s, None, thresholds, 2), alone[1])
    assert torch.equal(output_costs(s, members), alone[2])


@pytest.mark.parametrize("isa", [name for name, here in available_isas().items() if here])
@pytest.mark.parametrize("kind", ["heavy", "signed", "ties", "tiny", "huge"])
def test_instruction_sets_change_no_digit(isa, kind):
    def found() -> list[Tensor]:
        torch.manual_seed(1)
        s, members = KINDS[kind](37, 70), torch.rand(37, 70) < 0.6
        ranked = s.abs().sum(0).argsort(descending=True)[:50]
        gains = [native.split_gains(s, m, native.quantiles(s, m, None, 81), o) for m in (None, members) for o in (1, 2)]
        z = Zone(s, members)
        fits = [native.BINARIZERS[m](z, o, 5).values() for m in ("arb", "arb-rc") for o in (1, 2)]
        x = torch.randn(99, 70)
        fits += [native.fit_arb_x(Zone(s, members, x.T @ x), o, 5).values() for o in (1, 2)]
        costs = output_costs(s, members)
        return [native.salient_gains(s, ranked), *gains, costs, *fits]

    with forced_isa("scalar"):
        expected = found()
    with forced_isa(isa):
        assert active_isa() == isa
        for ours, theirs in zip(found(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", [1, 2])
def test_fits_do_not_depend_on_threads(threads, order):
    torch.manual_seed(1)
    z = Zone(torch.randn(1000, 37), torch.rand(1000, 37) < 0.5)
    found = [native.BINARIZERS[m](z, order, 5).values() for m in ("arb", "arb-rc")]
    torch.set_num_threads(1)
    for method, values in zip(("arb", "arb-rc"), found, strict=True):
        assert torch.equal(values, native.BINARIZERS[method](z, order, 5).values())


FIT_KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda n, k: torch.randn(n, k) + 0.1,
    "with zeros": lambda n, k: torch.randn(n, k) * (torch.rand(n, k) < 0.5) * (torch.rand(n, 1) < 0.7),
    "zero": torch.zeros,
    "constant rows": lambda n, k: torch.randn(n, 1).expand(n, k).contiguous(),
    "outlier": lambda n, k: torch.randn(n, k).mul(2).exp() * torch.randn(n, k).sign(),
}


def squared_error(z: Zone, fit: Fit) -> float:
    return float(((z.weight - fit.values()) * z.mask).double().square().sum())


@pytest.mark.parametrize("method", ["billm", "arb", "arb-rc"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", FIT_KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (33, 30), (130, 109)])
def test_same_fit(n, k, kind, order, method):
    """Values to 1e-5 of the largest weight; planes wherever they decide something."""
    for mask in (torch.ones(n, k, dtype=torch.bool), torch.rand(n, k) < 0.5, torch.zeros(n, k, dtype=torch.bool)):
        z = Zone(FIT_KINDS[kind](n, k), mask)
        largest = float(z.weight.abs().max())
        for iters in (0, 1, 15):
            expected = BINARIZERS[method](z, order, iters)
            found = native.BINARIZERS[method](z, order, iters)
            torch.testing.assert_close(
                found.values() * mask, expected.values() * mask, rtol=0, atol=1e-5 * largest + 1e-30
            )
            assert squared_error(z, found) <= squared_error(z, expected) * (1 + 1e-5) + 1e-9 * largest**2 * n * k
            if kind == "normal" and n > 5:
                for b, b_expected in zip(found.planes, expected.planes, strict=True):
                    assert torch.equal(b & mask, b_expected & mask)
                torch.testing.assert_close(found.row_scale, expected.row_scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (33, 30), (150, 109)])
def test_same_fit_against_outputs(n, k, order):
    """ARB-X: mean and scales as methods/ finds them in double, from the same planes."""
    x = torch.randn(2 * k + 3, k) + 0.3
    S = x.T @ x
    for mask in (torch.ones(n, k, dtype=torch.bool), torch.rand(n, k) < 0.5, torch.zeros(n, k, dtype=torch.bool)):
        z = Zone(torch.randn(n, k) + 0.1, mask, S)
        for iters in (0, 1, 15):
            start, found = native.fit_arb(z, order, iters), native.fit_arb_x(z, order, iters)
            exact = Fit(start.planes, start.row_scale.double(), mean=start.mean.double())
            expected = arb_x.refine(Zone(z.weight.double(), mask, S.double()), exact, iters).values()
            assert all(torch.equal(a, b) for a, b in zip(found.planes, start.planes, strict=True))
            torch.testing.assert_close(found.values().double() * mask, expected * mask, rtol=0, atol=1e-4)
            assert iters == 0 or n < 33 or not bool(mask.any()) or not torch.equal(found.mean, start.mean)


@pytest.mark.parametrize("order", [1, 2])
def test_fits_are_not_trivial(order):
    """Refinement lowers the error, and the planes have both signs."""
    z = Zone(torch.randn(64, 100), torch.rand(64, 100) < 0.8)
    for method in ("arb", "arb-rc"):
        before, after = (native.BINARIZERS[method](z, order, t) for t in (0, 15))
        assert squared_error(z, after) < squared_error(z, before)
        assert all(0.3 < float(b.float().mean()) < 0.7 for b in after.planes)


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize("cgb", [False, True])
def test_backends_agree(method, cgb):
    """The first block has the same zones. After it, a scale that another rounding stores one fp16 step away shifts what
    is propagated, so whole matrices agree in their loss."""
    W, x = torch.randn(48, 150) * torch.rand(150).exp(), torch.randn(400, 150)
    H = x.T @ x
    cfg = QuantConfig(method=method, cgb=cgb, block_size=64)
    first = {b: quantize_weight(W[:, :64], H[:64, :64], cfg, backend=b) for b in ON_CPU}
    assert torch.equal(first["native"].salient, first["torch"].salient)
    assert torch.equal(first["native"].group, first["torch"].group)
    assert torch.equal(first["native"].sign, first["torch"].sign)
    torch.testing.assert_close(first["native"].dequantize(), first["torch"].dequantize(), rtol=2e-3, atol=1e-5)
    factor = hessian_factor(H, cfg.damp)
    losses = {b: solve(W, factor, cfg, H / 2, backend=b)[1] for b in ON_CPU}
    assert losses["auto"] == losses["native"] == pytest.approx(losses["torch"], rel=1e-2)


@pytest.mark.parametrize("method", ["billm", "arb", "arb-x", "arb-rc", "arb-levels"])
def test_default_dtype_and_device_change_nothing(method):
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(37, 300, generator=generator), torch.randn(500, 300, generator=generator)

    def solved():
        return quantize_weight(W, X.T @ X / 500, QuantConfig(method=method), backend="native").tensors()

    wanted, before = solved(), torch.get_default_dtype()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            found = solved()
        finally:
            torch.set_default_dtype(before)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with torch.device("meta"):
        found = solved()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_auto_runs_native_code(monkeypatch):
    calls = []
    monkeypatch.setattr(native, "partition", lambda *args: calls.append(1) or oracle.partition(*args))
    W, H = torch.randn(4, 32), torch.eye(32)
    quantize_weight(W, H)
    assert calls == [1]
    quantize_weight(W, H, backend="torch")
    assert calls == [1]


def test_backend_errors():
    with pytest.raises(InputError, match=r"backend 'gpu': must be one of auto, native, torch, triton"):
        quantize_weight(torch.randn(4, 8), torch.eye(8), backend="gpu")
    with pytest.raises(InputError, match=r"on the CPU and W is on cuda:0"):
        _backend("native", torch.device("cuda:0"))
    on_gpu = _backend("auto", torch.device("cuda:0"))
    assert on_gpu.partition is TORCH.partition and on_gpu.binarizers is TORCH.binarizers
    assert _backend("torch", torch.device("cuda:0")) is TORCH


def test_bad_arguments():
    s = torch.rand(4, 8)
    ranked = torch.arange(8)
    with pytest.raises(InputError, match=r"s is torch.float64 \[4, 8\] on cpu, must be torch.float32"):
        native.salient_columns(s.double(), 50)
    with pytest.raises(InputError, match=r"s must have 2 dimensions, has shape \[32\]"):
        native.salient_columns(s.flatten(), 50)
    with pytest.raises(InputError, match=r"s \[4, 8\] holds NaN or Inf"):
        native.salient_columns(s.masked_fill(s == s.max(), float("nan")), 50)
    with pytest.raises(InputError, match=r"ranked names a column outside 0 .. 7"):
        native.salient_gains(s, ranked + 1)
    with pytest.raises(InputError, match=r"ranked \[9\] must list 2 .. 8 columns"):
        native.salient_gains(s, torch.arange(9))
    with pytest.raises(InputError, match=r"order 3 1 or 2"):
        native.split_gains(s, None, torch.ones(1), 3)
    with pytest.raises(InputError, match=r"thresholds \[0\] must be a non-empty list"):
        native.split_gains(s, None, torch.ones(0), 1)
    with pytest.raises(InputError, match=r"members \[4, 7\] must have the shape of s \[4, 8\]"):
        native.split_gains(s, torch.ones(4, 7, dtype=torch.bool), torch.ones(1), 1)
    with pytest.raises(InputError, match=r"order 3 must be 1 or 2 and iters 15"):
        native.fit_arb(Zone(s, s > 0), 3, 15)
    with pytest.raises(InputError, match=r"iters -1 at least 0"):
        native.fit_arb_rc(Zone(s, s > 0), 1, -1)
    with pytest.raises(InputError, match=r"residual \[4, 9\], S \[8, 8\] and 1 thresholds do not fit together"):
        native.output_costs(s, ranked, s > 0, torch.ones(1), torch.zeros(4, 9), torch.eye(8))
    with pytest.raises(InputError, match=r"output_costs: .* out of range \(s \[4, 8\]\)"):
        native.output_costs(s / 0, ranked, s > 0, torch.ones(1), torch.zeros(4, 8), torch.eye(8))
    with pytest.raises(InputError, match=r"S has shape \[9, 9\], must have \[8, 8\]"):
        native.fit_arb_x(Zone(s, s > 0, torch.eye(9)), 1, 3)
    with pytest.raises(InputError, match=r"32 non-zero members of s \[4, 8\] cannot be 31 values"):
        native.quantiles(s, None, 31, 5)


def test_nan_never_leads_astray():
    """Whatever the values, nothing outside the arrays is read; the result means nothing."""
    s = torch.full((20, 40), float("nan"))
    s[::2, ::2] = float("inf")
    assert native.salient_gains(s, torch.arange(40)).shape == (39,)
    assert native.split_gains(s, None, torch.tensor([float("nan"), 1.0, -1.0]), 2).shape == (3,)
    assert native.quantiles(s, None, None, 5).shape == (5,)
    for fit in (native.fit_arb, native.fit_arb_rc):
        assert fit(Zone(s, s != 0), 2, 3).row_scale.shape == (20, 2)
