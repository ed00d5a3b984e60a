"""The solver's hot part in csrc, for float32 tensors on the CPU: partition search and binarizers.

The oracle is methods/: the same steps and candidates and, where nothing ties to rounding, the same partition and
planes. csrc sums the gains and fits the zones; ranking columns, taking the best candidate and what ARB-X needs S for
stay in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import QuantConfig
from .errors import InputError
from .methods import levels
from .methods.binarize import Binarizer, Fit, Zone
from .methods.partition import Partition, salient_residual, split_by_output
from .native import extension


def partition(weight: Tensor, d: Tensor, cfg: QuantConfig, S: Tensor | None = None) -> Partition:
    """Search the partition of one block. weight: float32 [n, k]; d: [k], the diagonal of U; S: [k, k], for ARB-X only.

    Raises:
        InputError: not float32 on the CPU, or sensitivities w^2 / d^2 that overflow float32.
    """
    s = (weight / d).square() if cfg.metric == "hessian" else weight
    salient = salient_columns(s, cfg.max_salient)
    group = s.new_zeros(s.shape, dtype=torch.int64)
    columns = torch.nonzero(salient)[:, 0]
    part = s.index_select(1, columns)
    remaining: Tensor | None = None  # all of the part
    for _ in range(cfg.salient_groups - 1):
        thresholds = quantiles(part, remaining, None, cfg.thresholds)
        remaining = _low_side(part, remaining, split(part, remaining, thresholds, order=2))
        group.index_add_(1, columns, remaining.long())
    residual = salient_residual(s, salient, group, cfg, fit_arb) if S is not None else None
    columns = torch.nonzero(~salient)[:, 0]
    part = s.index_select(1, columns)
    remaining = None
    for last in range(cfg.groups - 2, -1, -1):
        thresholds = quantiles(part, remaining, s.numel(), cfg.thresholds)
        if S is None or residual is None:
            remaining = _low_side(part, remaining, split(part, remaining, thresholds, order=1))
        else:
            best = output_costs(part, columns, remaining, thresholds, residual, S).argmin()
            if last > 0:  # the next split needs to know what the high side leaves
                members = torch.ones_like(part, dtype=torch.bool) if remaining is None else remaining
                residual = split_by_output(part, columns, members, thresholds[best : best + 1], residual, S)[1]
            remaining = _low_side(part, remaining, float(thresholds[best]))
        group.index_add_(1, columns, remaining.long())
    return Partition(salient, group)


def salient_columns(s: Tensor, limit: int) -> Tensor:
    """bool [k]: the c columns of largest sum |s|, c in 1 .. limit - 1 minimising the order-2 error of both parts."""
    _check("s", s, torch.float32)
    scores = s.abs().sum(0)
    if not bool(torch.isfinite(scores).all()) and not bool(torch.isfinite(s).all()):
        raise InputError(f"s {list(s.shape)} holds NaN or Inf: a sensitivity w^2 / d^2 left the range of float32")
    ranked = scores.argsort(descending=True, stable=True)[:limit].contiguous()
    chosen = s.new_zeros(s.shape[1], dtype=torch.bool)
    if len(ranked) > 1:
        chosen[ranked[: 1 + int(salient_gains(s, ranked).argmax())]] = True
    return chosen


def salient_gains(s: Tensor, ranked: Tensor) -> Tensor:
    """float64 [len(ranked) - 1]: what c = 1, 2, .. columns of `ranked` (int64) gain. s: float32 [n, k]."""
    _check("s", s, torch.float32)
    _check("ranked", ranked, torch.int64, 1)
    if not 1 < len(ranked) <= s.shape[1]:
        raise InputError(f"ranked {list(ranked.shape)} must list 2 .. {s.shape[1]} columns of s {list(s.shape)}")
    if int(ranked.min()) < 0 or int(ranked.max()) >= s.shape[1]:
        raise InputError(f"ranked names a column outside 0 .. {s.shape[1] - 1} of s {list(s.shape)}")
    s, ranked = s.contiguous(), ranked.contiguous()
    gains = s.new_empty(len(ranked) - 1, dtype=torch.float64)
    extension.salient_gains(
        _entries(s, None), ranked.data_ptr(), len(ranked), torch.get_num_threads(), gains.data_ptr()
    )
    return gains


def split(s: Tensor, members: Tensor | None, thresholds: Tensor, order: int) -> float:
    """The threshold t for which splitting the members at |s| >= t has the least error."""
    return float(thresholds[split_gains(s, members, thresholds, order).argmax()])


def split_gains(s: Tensor, members: Tensor | None, thresholds: Tensor, order: int) -> Tensor:
    """float64 [q]: what each of the float32 thresholds [q] gains with `order` planes on both sides.

    s: float32 [n, c]; members: bool [n, c], or None for all.
    """
    _check("thresholds", thresholds, torch.float32, 1)
    if thresholds.numel() == 0 or order not in (1, 2):
        raise InputError(f"split: thresholds {list(thresholds.shape)} must be a non-empty list, order {order} 1 or 2")
    s, members = _part(s, members)
    thresholds = thresholds.contiguous()
    gains = s.new_zeros(len(thresholds), dtype=torch.float64)
    if s.numel() == 0:
        return gains
    extension.split_gains(
        _entries(s, members),
        thresholds.data_ptr(),
        len(thresholds),
        order,
        torch.get_num_threads(),
        gains.data_ptr(),
    )
    return gains


def output_costs(
    s: Tensor, columns: Tensor, members: Tensor | None, thresholds: Tensor, residual: Tensor, S: Tensor
) -> Tensor:
    """float64 [q]: tr(R S R^T) of the block for each threshold, less what they share; see `split_by_output`.

    s, members: [n, c], the given columns of the block; None: all are members. residual: float32 [n, k], 0 on them.
    S: float32 [k, k].
    """
    s, members = _part(s, members)
    _check("thresholds", thresholds, torch.float32, 1)
    _check("residual", residual, torch.float32)
    _check("S", S, torch.float32)
    n, k = residual.shape
    if len(columns) != s.shape[1] or n != s.shape[0] or tuple(S.shape) != (k, k) or thresholds.numel() == 0:
        raise InputError(
            f"output_costs: s {list(s.shape)}, {len(columns)} columns, residual [{n}, {k}], S {list(S.shape)} and "
            f"{thresholds.numel()} thresholds do not fit together"
        )
    symmetric = ((S + S.T) / 2).index_select(1, columns)  # tr(R S R^T) sees no more of S
    z = residual.index_add(1, columns, s if members is None else s * members) @ symmetric
    _check("z", z, torch.float32)  # autocast makes other numbers of it
    local = symmetric.index_select(0, columns)
    thresholds = thresholds.contiguous()
    costs = s.new_empty(len(thresholds), dtype=torch.float64)
    extension.output_costs(
        _entries(s, members),
        z.data_ptr(),
        local.data_ptr(),
        thresholds.data_ptr(),
        len(thresholds),
        torch.get_num_threads(),
        costs.data_ptr(),
    )
    return costs


def quantiles(s: Tensor, members: Tensor | None, total: int | None, number: int) -> Tensor:
    """`number` evenly spaced quantiles, 10 % to 90 %, of the members' |s|; float32.

    The non-zero members count, and as many zeros as make `total` values of them (None: no zeros). 0 if there are none.
    """
    s, members = _part(s, members)
    nonzero = int(torch.count_nonzero(s if members is None else s * members))
    total = nonzero if total is None else total
    if total < nonzero:
        raise InputError(f"quantiles: {nonzero} non-zero members of s {list(s.shape)} cannot be {total} values")
    if total == 0:
        return s.new_zeros(1)
    ranks = torch.linspace(0.1, 0.9, number, dtype=torch.float64, device=s.device) * (total - 1)
    both = torch.stack([ranks.floor(), ranks.ceil()]).long()
    values = s.new_empty(both.shape)
    extension.order_statistics(_entries(s, members), total - nonzero, both.data_ptr(), both.numel(), values.data_ptr())
    low, high = values.double()
    return torch.lerp(low, high, ranks - both[0]).float()


def fit_billm(zone: Zone, order: int, iters: int = 0) -> Fit:
    """As methods/billm.py: where ARB starts."""
    return fit_arb(zone, order, 0)


def fit_arb(zone: Zone, order: int, iters: int) -> Fit:
    """As methods/arb.py, for a float32 zone. Its scales are rounded once, from double."""
    planes, row_scale, mean = _fit_arb(zone, order, iters)
    return Fit(list(planes), row_scale, mean=mean)


def _fit_arb(zone: Zone, order: int, iters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Planes [order, n, k], row scales [n, order], means [n]."""
    s, members = _part(zone.weight, zone.mask)
    planes, row_scale = _outputs(s, order, iters)
    mean = s.new_zeros(len(s))
    if s.numel():
        extension.fit_arb(
            _entries(s, members),
            order,
            iters,
            torch.get_num_threads(),
            planes.data_ptr(),
            row_scale.data_ptr(),
            mean.data_ptr(),
        )
    return planes, row_scale, mean


def fit_arb_x(zone: Zone, order: int, iters: int) -> Fit:
    """As methods/arb_x.py, for a float32 zone; the product with S is torch's work."""
    if zone.S is None:
        raise TypeError("ARB-X needs S, the second moment of the inputs")
    planes, row_scale, mean = _fit_arb(zone, order, iters)
    s, members = _part(zone.weight * zone.mask, zone.mask)
    (n, k), vectors = s.shape, 1 + order
    _check("S", zone.S, torch.float32)
    _check_shape("S", zone.S, (k, k))
    coefficients = torch.cat([mean[:, None], row_scale], 1)
    if s.numel():
        basis = s.new_empty(n, vectors, k)
        threads = torch.get_num_threads()
        extension.arb_x_basis(_entries(s, members), planes.data_ptr(), order, threads, basis.data_ptr())
        products = basis @ zone.S
        _check("products", products, torch.float32, 3)  # autocast makes other numbers of it
        extension.fit_arb_x(
            s.data_ptr(),
            basis.data_ptr(),
            products.data_ptr(),
            n,
            k,
            vectors,
            iters,
            threads,
            coefficients.data_ptr(),
        )
    return Fit(list(planes), coefficients[:, 1:], mean=coefficients[:, 0])


def fit_arb_rc(zone: Zone, order: int, iters: int) -> Fit:
    """As methods/arb_rc.py, for a float32 zone."""
    s, members = _part(zone.weight, zone.mask)
    planes, row_scale = _outputs(s, order, iters)
    col_scale = s.new_zeros(order, s.shape[1])
    if s.numel():
        extension.fit_arb_rc(
            _entries(s, members),
            order,
            iters,
            torch.get_num_threads(),
            planes.data_ptr(),
            row_scale.data_ptr(),
            col_scale.data_ptr(),
        )
    return Fit(list(planes), row_scale, col_scale=col_scale)


BINARIZERS: dict[str, Binarizer] = {
    "billm": fit_billm,
    "arb": fit_arb,
    "arb-x": fit_arb_x,
    "arb-rc": fit_arb_rc,
}


def fit_levels(weight: Tensor, importance: Tensor, col: Tensor, levels: Tensor, iters: int) -> tuple[Tensor, Tensor]:
    """As methods/levels.py `fit`, for float32 tensors on the CPU."""
    weight, importance = weight.contiguous(), importance.contiguous()
    col, levels = (t.clone(memory_format=torch.contiguous_format) for t in (col, levels))
    for name, t, shape in (
        ("weight", weight, weight.shape),
        ("importance", importance, weight.shape[:1]),
        ("col", col, weight.shape[:1]),
        ("levels", levels, (len(levels), weight.shape[1])),
    ):
        _check(name, t, torch.float32, len(shape))
        _check_shape(name, t, tuple(shape))
    extension.fit_levels(
        weight.data_ptr(),
        importance.data_ptr(),
        levels.data_ptr(),
        col.data_ptr(),
        weight.shape[1],
        weight.shape[0],
        len(levels),
        iters,
        torch.get_num_threads(),
    )
    return col, levels


def sweep_levels(
    work: Tensor,
    before: Tensor | None,
    coupling: Tensor,
    row_scale: Tensor,
    col: Tensor,
    salient: Tensor,
    storage: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As methods/levels.py `sweep`, for float32 tensors on the CPU."""
    k, n = work.shape
    work, col = (t.clone(memory_format=torch.contiguous_format) for t in (work, col))
    coupling, row_scale, salient = coupling.contiguous(), row_scale.contiguous(), salient.contiguous()
    value = torch.empty_like(work) if before is None else before.clone(memory_format=torch.contiguous_format)
    for name, t, dtype, shape in (
        ("work", work, torch.float32, (k, n)),
        ("before", value, torch.float32, (k, n)),
        ("coupling", coupling, torch.float32, (k, k)),
        ("row_scale", row_scale, torch.float32, (6, n)),
        ("col", col, torch.float32, (k,)),
        ("salient", salient, torch.bool, (k,)),
    ):
        _check(name, t, dtype, len(shape))
        _check_shape(name, t, shape)
    change, code = torch.empty_like(work), work.new_empty(k, n, dtype=torch.uint8)
    extension.sweep_levels(
        work.data_ptr(),
        coupling.data_ptr(),
        row_scale.data_ptr(),
        col.data_ptr(),
        value.data_ptr(),
        change.data_ptr(),
        code.data_ptr(),
        salient.data_ptr(),
        n,
        k,
        before is not None,
        storage is torch.float16,
        torch.get_num_threads(),
    )
    return col, value, code, change


LEVELS = levels.Engine(fit_levels, sweep_levels)


def _check_shape(name: str, t: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(t.shape) != shape:
        raise InputError(f"native solver: {name} has shape {list(t.shape)}, must have {list(shape)}")


def _outputs(s: Tensor, order: int, iters: int) -> tuple[Tensor, Tensor]:
    """Planes, bool [order, n, c], and row scales [n, order], for csrc to fill."""
    if order not in (1, 2) or iters < 0:
        raise InputError(f"native solver: order {order} must be 1 or 2 and iters {iters} at least 0")
    return s.new_zeros(order, *s.shape, dtype=torch.bool), s.new_zeros(len(s), order)


def _low_side(s: Tensor, members: Tensor | None, threshold: float) -> Tensor:
    low = s.abs() < threshold
    return low if members is None else low & members


def _part(s: Tensor, members: Tensor | None) -> tuple[Tensor, Tensor | None]:
    _check("s", s, torch.float32)
    if members is None:
        return s.contiguous(), None
    _check("members", members, torch.bool)
    if members.shape != s.shape:
        raise InputError(f"members {list(members.shape)} must have the shape of s {list(s.shape)}")
    return s.contiguous(), members.contiguous()


def _check(name: str, t: Tensor, dtype: torch.dtype, ndim: int = 2) -> None:
    if t.dtype != dtype or t.device.type != "cpu":
        raise InputError(
            f"native solver: {name} is {t.dtype} {list(t.shape)} on {t.device}, must be {dtype} on the CPU"
        )
    if t.ndim != ndim:
        raise InputError(f"native solver: {name} must have {ndim} dimensions, has shape {list(t.shape)}")


def _entries(s: Tensor, members: Tensor | None) -> extension.Entries:
    """The native view; the caller keeps the tensors alive while it is used."""
    return extension.Entries(s.data_ptr(), 0 if members is None else members.data_ptr(), *s.shape)
