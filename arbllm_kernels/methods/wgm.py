"""WGM, dynamic grouping by windows and greedy merging: signs, and one scale for each of 32 groups of like magnitude.

The magnitudes of a matrix are sorted; a group is a run of them, its scale their mean. What is minimised is the sum over
the groups of |g| Var(g) + lambda / |g|, greedily: from windows of equal length on, the neighbouring pair whose union
costs least is merged, until as many groups are left as are allowed (the authors' third algorithm, the one they run).
Only simulated, as rtn.py. Their 1.007 bits count signs and scales; a file must also say which group each weight is in.
"""

from __future__ import annotations

import heapq
import itertools
import math

import torch
from torch import Tensor

from .rtn import Simulated

LAMBDA = 0.75


def wgm(W: Tensor, groups: int = 32, window: int = 64) -> Simulated:
    """Quantize a matrix [n, m]."""
    flat = W.float().flatten()
    order = flat.abs().argsort(stable=True)
    magnitude = flat.abs()[order]
    edges = merge(magnitude, groups, window)
    sizes = torch.tensor(edges).diff()
    scales = torch.stack([part.double().mean() for part in magnitude.split(sizes.tolist())]).half().float()
    level = torch.empty_like(flat).index_put_((order,), scales.repeat_interleave(sizes))
    bits = 1 + math.ceil(math.log2(max(len(scales), 1))) + 16 * len(scales) / flat.numel()
    return Simulated(torch.where(flat < 0, -level, level).view_as(W), bits)


def merge(magnitude: Tensor, groups: int, window: int) -> list[int]:
    """Where the groups of sorted magnitudes [k] begin, and k."""
    count = len(magnitude)
    edges = [*range(0, count, window), count]
    first: list[float] = [0.0, *magnitude.double().cumsum(0).tolist()]
    second: list[float] = [0.0, *magnitude.double().square().cumsum(0).tolist()]

    def cost(a: int, b: int) -> float:
        total = first[b] - first[a]
        return second[b] - second[a] - total * total / (b - a) + LAMBDA / (b - a)

    following = dict(itertools.pairwise(edges))
    before = {b: a for a, b in itertools.pairwise(edges)}
    heap = [(cost(a, edges[i + 2]), a, edges[i + 1], edges[i + 2]) for i, a in enumerate(edges[:-2])]
    heapq.heapify(heap)
    while len(following) > groups:
        _, a, middle, b = heapq.heappop(heap)
        if following.get(a) != middle or following.get(middle) != b:
            continue  # one of the pair has been merged meanwhile
        following[a], before[b] = b, a
        del following[middle], before[middle]
        if a in before:
            heapq.heappush(heap, (cost(before[a], b), before[a], a, b))
        if b in following:
            heapq.heappush(heap, (cost(a, following[b]), a, b, following[b]))
    return [*following, count]
