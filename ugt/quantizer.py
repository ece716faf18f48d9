"""Residual quantisation: item vectors to (L1, L2) codes with a capacity per code, and a collision-free third code.

Choices: k-means++ start on a sample, Lloyd steps in blocks of rows (1M x 256 float32 then fits in about 1 GB); an (L1, L2) group never outgrows
K3. The second codebook starts as one for all, as in residual quantisation, and then adapts to each L1 code in a few balanced steps: a
shared one leaves half of the groups empty and a quarter of the items in their second choice (sample catalogue: overflow 26% -> 1%, groups
used 526 -> 966 of 1,024, variance explained .71 -> .85). `ugt.rq_vae` is the learned alternative for the codebooks and the space they lie in.

Shapes: N items, D width, K codes of a level, B rows of a block.
Source: residual quantisation for semantic IDs, TIGER (Rajput et al., 2023), section 3.1; residual k-means as in OneRec (Deng et al., 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ugt.fusion import silu
from ugt.schema import UGTError

BLOCK = 65_536  # rows of a distance block: 64k x 512 codes x 4 bytes = 128 MB at most
SAMPLE_PER_CODE = 64  # rows per code for the k-means++ start


@dataclass(frozen=True)
class Codebooks:
    """Frozen centres of the two quantised levels, and the layers in front of them if the method has any (RQ-VAE)."""

    l1_KD: np.ndarray
    l2_KKD: np.ndarray  # one second codebook per L1 code
    layers: tuple[tuple[np.ndarray, np.ndarray], ...] = ()  # (weight [in, out], bias [out]) with SiLU between; empty: identity

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """Item vectors to the space of the centres, float32 [N, width of the centres]."""
        z = np.asarray(x_ND, np.float32)
        for i, (weight, bias) in enumerate(self.layers):
            z = z @ weight + bias
            if i < len(self.layers) - 1:
                z = silu(z)
        return z

    def save(self, path: Path) -> None:
        """Write one `.npz` file."""
        arrays = {"l1": self.l1_KD, "l2": self.l2_KKD}
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"weight_{i}": weight, f"bias_{i}": bias}
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Codebooks:
        """Raises UGTError if the file is not there."""
        if not Path(path).is_file():
            raise UGTError(f"no codebooks at {path}. Run `ugt train semantic-ids` first.")
        with np.load(path) as f:
            return cls(f["l1"], f["l2"], tuple((f[f"weight_{i}"], f[f"bias_{i}"]) for i in range(sum(n.startswith("weight_") for n in f.files))))


def distances(x_BD: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float32 [B, K], up to the row's own norm (enough to compare centres of one row)."""
    return (centres_KD**2).sum(1) - 2 * (x_BD @ centres_KD.T)


def nearest(x_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Nearest centre of each row, int64 [N]; ties go to the lower code."""
    return np.concatenate([np.argmin(distances(x_ND[i : i + BLOCK], centres_KD), axis=1) for i in range(0, len(x_ND), BLOCK)] or [np.empty(0, np.int64)])


def kmeans(x_ND: np.ndarray, k: int, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Centres by Lloyd's algorithm from a k-means++ start, float32 [k, D]. O(iterations N k D).

    A centre without rows is moved to the row farthest from its own centre. With fewer distinct rows than k the surplus centres repeat.
    Source: Arthur and Vassilvitskii (2007), k-means++.
    """
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    centres_KD = _plus_plus(x_ND, k, rng)
    previous = None
    for _ in range(iterations):
        code_N = nearest(x_ND, centres_KD)
        if previous is not None and (code_N == previous).all():
            break
        previous = code_N
        _move(x_ND, code_N, centres_KD)
    return centres_KD


def _plus_plus(x_ND: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    limit = min(len(x_ND), k * SAMPLE_PER_CODE)
    sample = x_ND[np.sort(rng.choice(len(x_ND), limit, replace=False))]
    centres = np.empty((k, x_ND.shape[1]), np.float32)
    centres[0] = sample[rng.integers(limit)]
    closest = ((sample - centres[0]) ** 2).sum(1, dtype=np.float64)
    for i in range(1, k):
        total = closest.sum()
        pick = int(np.searchsorted(np.cumsum(closest), rng.random() * total)) if total > 0 else int(rng.integers(limit))
        centres[i] = sample[min(pick, limit - 1)]
        closest = np.minimum(closest, ((sample - centres[i]) ** 2).sum(1, dtype=np.float64))
    return centres


def assign_codes(x_ND: np.ndarray, centres_KD: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre of each row, at most `capacity` rows per centre.

    Returns (codes_N int32, overflow_N bool); a row whose nearest centre is full takes its next-best one and is marked.
    A contested centre keeps the rows that would lose most by leaving (largest gap to their next choice), then those of lower index.
    Raises UGTError if K * capacity < N. O(N K D) time; full distances only for contested rows.
    Source: constrained assignment as in balanced k-means (Malinen and Franti, 2014), greedy by regret.
    """
    k = len(centres_KD)
    if k * capacity < len(x_ND):
        raise UGTError(f"semantic_ids: {len(x_ND):,} items don't fit {k} codes of {capacity}. Raise semantic_ids.l2, l3 or balance.")
    first_N = nearest(x_ND, centres_KD)
    code_N = first_N.copy()
    room_K = capacity - np.bincount(first_N, minlength=k)
    contested_K = room_K < 0
    open_N = np.flatnonzero(contested_K[first_N])  # everybody else is settled
    room_K[contested_K] = capacity
    distance_OK = distances(x_ND[open_N], centres_KD).astype(np.float64)
    while len(open_N):
        allowed_OK = np.where(room_K > 0, distance_OK, np.inf)
        choice_O = np.argmin(allowed_OK, axis=1)
        best_O = allowed_OK[np.arange(len(open_N)), choice_O]
        allowed_OK[np.arange(len(open_N)), choice_O] = np.inf
        regret_O = allowed_OK.min(axis=1) - best_O
        order = np.lexsort((open_N, -regret_O, choice_O))
        taken = order[_rank(choice_O[order]) < room_K[choice_O[order]]]
        code_N[open_N[taken]] = choice_O[taken]
        room_K -= np.bincount(choice_O[taken], minlength=k)
        rest = np.setdiff1d(np.arange(len(open_N)), taken, assume_unique=True)
        open_N, distance_OK = open_N[rest], distance_OK[rest]
    return code_N.astype(np.int32), code_N != first_N


def fit_residual_kmeans(x_ND: np.ndarray, k1: int, k2: int, iterations: int, seed: int) -> Codebooks:
    """Two codebooks, the second over what the first leaves, the same for all L1 codes. Deterministic under `seed` with one BLAS thread."""
    rng = np.random.default_rng(seed)
    l1_KD = kmeans(x_ND, k1, iterations, rng)
    return Codebooks(l1_KD, shared(kmeans(x_ND - l1_KD[nearest(x_ND, l1_KD)], k2, iterations, rng), k1))


def shared(l2_KD: np.ndarray, k1: int) -> np.ndarray:
    """One second codebook for all L1 codes, float32 [K1, K2, D]."""
    return np.repeat(l2_KD[None], k1, axis=0)


def localise(x_ND: np.ndarray, codebooks: Codebooks, k3: int, balance: float, steps: int) -> Codebooks:
    """The codebooks with the second level adapted to each L1 code by `steps` balanced Lloyd steps from where it is.

    So an L2 code keeps about the same meaning under every L1 code, but follows the items that are there; a centre without items moves to the item
    farthest from its own. O(steps N K2 D).
    """
    z_ND = codebooks.encode(x_ND)
    l1_N, _ = assign_codes(z_ND, codebooks.l1_KD, _capacity(len(z_ND), codebooks, k3, balance))
    l2_KKD = codebooks.l2_KKD.copy()
    for l1 in range(len(l2_KKD)):
        r_MD = z_ND[l1_N == l1] - codebooks.l1_KD[l1]
        for _ in range(steps if len(r_MD) else 0):
            code_M, _ = assign_codes(r_MD, l2_KKD[l1], k3)
            _move(r_MD, code_M, l2_KKD[l1])
    return Codebooks(codebooks.l1_KD, l2_KKD, codebooks.layers)


def quantise(x_ND: np.ndarray, codebooks: Codebooks, k3: int, balance: float, key_N: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """Codes int32 [N, 3], no two equal, L3 dense in its group; and figures (overflow shares, share of variance explained).

    An L1 code holds at most `balance` times the mean and never more than K2 * K3; a group at most K3. `key_N` orders a group, largest first, ties by
    item_index; without it the order is along the first principal direction of what both levels leave.
    """
    z_ND = codebooks.encode(x_ND)
    l1_N, over1_N = assign_codes(z_ND, codebooks.l1_KD, _capacity(len(z_ND), codebooks, k3, balance))
    residual_ND = z_ND - codebooks.l1_KD[l1_N]
    l2_N, over2_N = np.zeros(len(z_ND), np.int32), np.zeros(len(z_ND), bool)
    for l1 in np.unique(l1_N):
        rows = np.flatnonzero(l1_N == l1)
        l2_N[rows], over2_N[rows] = assign_codes(residual_ND[rows], codebooks.l2_KKD[l1], k3)
    left_ND = residual_ND - codebooks.l2_KKD[l1_N, l2_N]
    if key_N is None:
        key_N = left_ND @ _first_direction(left_ND)
    group_N = l1_N.astype(np.int64) * codebooks.l2_KKD.shape[1] + l2_N
    order = np.lexsort((np.arange(len(z_ND)), -np.asarray(key_N, np.float64), group_N))
    l3_N = np.empty(len(z_ND), np.int32)
    l3_N[order] = _rank(group_N[order])
    total = float(((z_ND - z_ND.mean(0)) ** 2).sum(dtype=np.float64)) or 1.0
    figures = {
        "overflow_l1": round(float(over1_N.mean()), 4),
        "overflow_l2": round(float(over2_N.mean()), 4),
        "overflow": round(float((over1_N | over2_N).mean()), 4),
        "explained_l1": round(1 - float((residual_ND**2).sum(dtype=np.float64)) / total, 4),
        "explained_l2": round(1 - float((left_ND**2).sum(dtype=np.float64)) / total, 4),
    }
    return np.stack([l1_N, l2_N, l3_N], axis=1), figures


def _capacity(items: int, codebooks: Codebooks, k3: int, balance: float) -> int:
    return min(codebooks.l2_KKD.shape[1] * k3, int(np.ceil(balance * items / len(codebooks.l1_KD))))


def _rank(sorted_N: np.ndarray) -> np.ndarray:
    """Place of each entry of a sorted array among its equals, from 0."""
    first_N = np.r_[True, sorted_N[1:] != sorted_N[:-1]]
    place_N = np.arange(len(sorted_N))
    return place_N - np.maximum.accumulate(np.where(first_N, place_N, 0)) if len(sorted_N) else place_N


def _move(x_ND: np.ndarray, code_N: np.ndarray, centres_KD: np.ndarray) -> None:
    """One Lloyd step in place: centres to the mean of their rows; those without any to the rows farthest from their own centre."""
    count_K = np.bincount(code_N, minlength=len(centres_KD))
    order = np.argsort(code_N, kind="stable")
    live = np.flatnonzero(count_K)
    starts = np.concatenate([[0], np.cumsum(count_K[live])[:-1]])
    # float64 sums: their rounding then hardly depends on how many rows a code has
    centres_KD[live] = (np.add.reduceat(x_ND[order], starts, axis=0, dtype=np.float64) / count_K[live, None]).astype(np.float32)
    dead = np.flatnonzero(count_K == 0)
    far = np.argsort(-((x_ND - centres_KD[code_N]) ** 2).sum(1), kind="stable")[: len(dead)]
    centres_KD[dead[: len(far)]] = x_ND[far]


def _first_direction(x_ND: np.ndarray) -> np.ndarray:
    """Unit vector of largest variance, its largest entry positive so that its sign is not left to the solver."""
    _, vectors = np.linalg.eigh(np.cov(x_ND, rowvar=False, dtype=np.float64).reshape(x_ND.shape[1], -1))
    direction = vectors[:, -1]
    return (direction * np.sign(direction[np.argmax(np.abs(direction))])).astype(np.float32)
