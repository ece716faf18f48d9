"""k-means: nearest centres, k-means++ start, Lloyd steps; alone, or with the rows shared by several workers.

Choices: above `WHOLE` rows a codebook is fitted on a sample (128 rows a code), because centres hardly move for more and a Lloyd step over 1M x 256 with
2,048 centres is 10^12 operations; below it every row is used. Workers differ in nothing but the rows they look at: sums and counts are float64 and added up,
so the centres are the same to rounding however many share the work.

Shapes: N items, D width, K codes, B rows of a block.
Source: Lloyd (1982); Arthur and Vassilvitskii (2007) for the start; parallel form as in Dhillon and Modha (2000).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

BLOCK = 65_536  # rows of a distance block at most, and 128 MB of distances at most
WHOLE = 131_072  # rows that are all used in the fit
ROWS_PER_CODE = 128  # of a sample; faiss takes at most 256 and warns below 39
START_WHOLE, START_SAMPLED = 64, 16  # rows per code for the k-means++ start, which reads them once a code


class Group(Protocol):
    """Workers that share the rows of one matrix, which each of them can read."""

    rank: int
    size: int

    def sum(self, x: np.ndarray) -> np.ndarray:
        """The sum over the workers, of arrays of one shape."""

    def gather(self, x: np.ndarray) -> np.ndarray:
        """The workers' arrays in order of rank, joined along their first axis."""


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def sum(self, x: np.ndarray) -> np.ndarray:
        return x

    def gather(self, x: np.ndarray) -> np.ndarray:
        return x


ALONE = Alone()


def share(n: int, group: Group) -> slice:
    """The rows of `n` that are this worker's: contiguous, in order of rank, sizes that differ by one at most."""
    return slice(n * group.rank // group.size, n * (group.rank + 1) // group.size)


def distances(x_BD: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float32 [B, K], up to the row's own norm (enough to compare centres of one row)."""
    distance_BK = x_BD @ (-2 * centres_KD.T)
    distance_BK += (centres_KD**2).sum(1)
    return distance_BK


def blocks(n: int, k: int) -> list[slice]:
    """Slices of `n` rows whose distances to `k` centres are held at once."""
    rows = max(1024, min(BLOCK, 2**25 // k))
    return [slice(i, i + rows) for i in range(0, n, rows)]


def nearest(x_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Nearest centre of each row, int64 [N]; ties go to the lower code."""
    found = [np.argmin(distances(x_ND[block], centres_KD), axis=1) for block in blocks(len(x_ND), len(centres_KD))]
    return np.concatenate(found or [np.empty(0, np.int64)])


def sampled(x_ND: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The rows that `k` centres are fitted on, in order: all of them, or as many as the module says, drawn at random."""
    limit = max(WHOLE, k * ROWS_PER_CODE)
    return x_ND if len(x_ND) <= limit else x_ND[np.sort(rng.choice(len(x_ND), limit, replace=False))]


def kmeans(x_ND: np.ndarray, k: int, iterations: int, rng: np.random.Generator, group: Group = ALONE) -> np.ndarray:
    """Centres by Lloyd's algorithm from a k-means++ start, float32 [k, D]. O(iterations N k D), split among the workers of `group`.

    Every worker gives the same `x_ND` and an equal `rng`, and gets the same centres. A centre without rows is moved to the row farthest from its own centre.
    With fewer distinct rows than k the surplus centres repeat.
    """
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    centres_KD = _plus_plus(x_ND, k, rng)
    mine_MD = x_ND[share(len(x_ND), group)]
    previous = None
    for _ in range(iterations):
        code_M = nearest(mine_MD, centres_KD)
        changed = len(code_M) if previous is None else int((code_M != previous).sum())
        if group.sum(np.array([changed]))[0] == 0:
            break
        previous = code_M
        move(mine_MD, code_M, centres_KD, group)
    return centres_KD


def _plus_plus(x_ND: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    large = len(x_ND) > WHOLE
    limit = min(len(x_ND), k * (START_SAMPLED if large else START_WHOLE))
    sample = x_ND[np.sort(rng.choice(len(x_ND), limit, replace=False))]
    norm_N = (sample**2).sum(1) if large else None
    centres = np.empty((k, x_ND.shape[1]), np.float32)
    centres[0] = sample[rng.integers(limit)]
    closest = _to(centres[0], sample, norm_N)
    for i in range(1, k):
        total = closest.sum()
        pick = int(np.searchsorted(np.cumsum(closest), rng.random() * total)) if total > 0 else int(rng.integers(limit))
        centres[i] = sample[min(pick, limit - 1)]
        closest = np.minimum(closest, _to(centres[i], sample, norm_N))
    return centres


def _to(centre_D: np.ndarray, x_ND: np.ndarray, norm_N: np.ndarray | None) -> np.ndarray:
    """Squared distances of rows to one centre, float64 [N]; by a product where the rows' norms are given, several times as fast and less exact."""
    if norm_N is None:
        return ((x_ND - centre_D) ** 2).sum(1, dtype=np.float64)
    return np.maximum(norm_N - 2 * (x_ND @ centre_D) + centre_D @ centre_D, 0).astype(np.float64)


def move(x_ND: np.ndarray, code_N: np.ndarray, centres_KD: np.ndarray, group: Group = ALONE) -> None:
    """One Lloyd step in place: centres to the mean of their rows; those without any to the rows farthest from their own centre.

    Rows and codes are this worker's share.
    """
    local_K = np.bincount(code_N, minlength=len(centres_KD))
    count_K = group.sum(local_K)
    sum_KD = group.sum(_sums(x_ND, code_N, local_K))
    live, dead = np.flatnonzero(count_K), np.flatnonzero(count_K == 0)
    centres_KD[live] = (sum_KD[live] / count_K[live, None]).astype(np.float32)
    if len(dead):
        distance_N = ((x_ND - centres_KD[code_N]) ** 2).sum(1)
        far = np.argsort(-distance_N, kind="stable")[: len(dead)]
        distance, row_FD = group.gather(distance_N[far]), group.gather(x_ND[far])
        order = np.argsort(-distance, kind="stable")[: len(dead)]
        centres_KD[dead[: len(order)]] = row_FD[order]


def _sums(x_ND: np.ndarray, code_N: np.ndarray, count_K: np.ndarray) -> np.ndarray:
    """Sum of the rows of each code, float64 [K, D]: its rounding then hardly depends on how many rows a code has.

    A sparse product adds the rows of a code in order, as `np.add.reduceat` does, in a twentieth of its time.
    """
    starts_K1 = np.concatenate([[0], np.cumsum(count_K)])
    member_KN = csr_array((np.ones(len(x_ND)), np.argsort(code_N, kind="stable"), starts_K1), shape=(len(count_K), len(x_ND)))
    return np.asarray(member_KN @ x_ND)
