"""Residual quantisation: item vectors to (L1, L2) codes with a capacity per code, and a collision-free third code.

Choices: k-means (`ugt.kmeans`) on a sample where the catalogue is large, then every row in blocks, so that a million items of width 256 take their own
1 GB and not much more; an (L1, L2) group never outgrows K3. The second codebook starts as one for all, as in residual quantisation, and then adapts to each
L1 code in a few balanced steps: a shared one leaves half of the groups empty and a quarter of the items in their second choice (sample catalogue: overflow
26% -> 1%, groups used 526 -> 966 of 1,024, variance explained .71 -> .85). `ugt.rq_vae` is the learned alternative for the codebooks and the space they lie in.

Shapes: N items, D width, K codes of a level, B rows of a block.
Source: residual quantisation for semantic IDs, TIGER (Rajput et al., 2023), section 3.1; residual k-means as in OneRec (Deng et al., 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ugt.fusion import silu
from ugt.kmeans import ALONE, Group, blocks, distances, kmeans, move, nearest, sampled, share
from ugt.schema import UGTError

CANDIDATES = 32  # centres kept of a contested row; it looks again when all but one of them are full
# of a large catalogue's first codebook. 150,000 x 64, three of them: items in their second choice 7.8% -> 2.1%, L1 shared with neighbours 73.0% -> 74.3%
BALANCED = 8


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


def assign_codes(x_ND: np.ndarray, centres_KD: np.ndarray, capacity: int, group: Group = ALONE) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre of each row, at most `capacity` rows per centre.

    Returns (codes_N int32, overflow_N bool); a row whose nearest centre is full takes its next-best one and is marked.
    A contested centre keeps the rows that would lose most by leaving (largest gap to their next choice), then those of lower index.
    Raises UGTError if K * capacity < N. O(N K D) time, split among the workers of `group`; of a contested row only the nearest centres are kept.
    Source: constrained assignment as in balanced k-means (Malinen and Franti, 2014), greedy by regret.
    """
    k = len(centres_KD)
    if k * capacity < len(x_ND):
        raise UGTError(f"semantic_ids: {len(x_ND):,} items don't fit {k} codes of {capacity}. Raise semantic_ids.l2, l3 or balance.")
    first_N = group.gather(nearest(x_ND[share(len(x_ND), group)], centres_KD))
    code_N = first_N.copy()
    room_K = capacity - np.bincount(first_N, minlength=k)
    contested_K = room_K < 0
    open_O = np.flatnonzero(contested_K[first_N])  # everybody else is settled
    room_K[contested_K] = capacity
    mine = open_O[share(len(open_O), group)]
    near_OC, distance_OC = (group.gather(part) for part in _candidates(x_ND[mine], centres_KD, np.ones(k, bool)))
    while len(open_O):
        with_room = room_K > 0
        thin_O = with_room[near_OC].sum(1) < min(2, with_room.sum())
        if thin_O.any():  # the nearest ones are full: look again among those that are not
            near_OC[thin_O], distance_OC[thin_O] = _candidates(x_ND[open_O[thin_O]], centres_KD, with_room)
        allowed_OC = np.where(with_room[near_OC], distance_OC, np.inf)
        place_O = np.argmin(allowed_OC, axis=1)
        row_O = np.arange(len(open_O))
        choice_O, best_O = near_OC[row_O, place_O], allowed_OC[row_O, place_O]
        allowed_OC[row_O, place_O] = np.inf
        regret_O = allowed_OC.min(axis=1) - best_O
        order = np.lexsort((open_O, -regret_O, choice_O))
        taken = order[_rank(choice_O[order]) < room_K[choice_O[order]]]
        code_N[open_O[taken]] = choice_O[taken]
        room_K -= np.bincount(choice_O[taken], minlength=k)
        rest = np.setdiff1d(row_O, taken, assume_unique=True)
        open_O, near_OC, distance_OC = open_O[rest], near_OC[rest], distance_OC[rest]
    return code_N.astype(np.int32), code_N != first_N


def _candidates(x_ND: np.ndarray, centres_KD: np.ndarray, allowed_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest allowed centres of each row, nearest first, ties to the lower code: codes int64 and distances float64 [N, min(K, CANDIDATES)].

    Where fewer are allowed the rest is at infinite distance.
    """
    k, count = len(centres_KD), min(len(centres_KD), CANDIDATES)
    codes, nears = [np.empty((0, count), np.int64)], [np.empty((0, count))]
    for block in blocks(len(x_ND), k):
        distance_BK = np.where(allowed_K, distances(x_ND[block], centres_KD), np.float32(np.inf))
        code_BC = np.argpartition(distance_BK, count - 1, axis=1)[:, :count] if count < k else np.broadcast_to(np.arange(k), distance_BK.shape)
        code_BC = np.sort(code_BC, axis=1)
        near_BC = np.take_along_axis(distance_BK, code_BC, 1)
        order_BC = np.argsort(near_BC, axis=1, kind="stable")
        codes.append(np.take_along_axis(code_BC, order_BC, 1))
        nears.append(np.take_along_axis(near_BC, order_BC, 1).astype(np.float64))
    return np.concatenate(codes), np.concatenate(nears)


def fit_residual_kmeans(x_ND: np.ndarray, k1: int, k2: int, iterations: int, seed: int, balance: float = np.inf, group: Group = ALONE) -> Codebooks:
    """Two codebooks, the second over what the first leaves, the same for all L1 codes. Deterministic under `seed` with one BLAS thread.

    A large catalogue's first codebook takes `BALANCED` more steps in which a code holds at most `balance` times the mean. The workers of `group` share the
    work; each gets the same codebooks, those of one worker to rounding.
    """
    rng = np.random.default_rng(seed)
    x_MD = sampled(x_ND, k1, rng)
    l1_KD = kmeans(x_MD, k1, iterations, rng, group)
    if len(x_MD) < len(x_ND):
        mine = share(len(x_MD), group)
        for _ in range(BALANCED if np.isfinite(balance) else 0):
            code_M, _ = assign_codes(x_MD, l1_KD, int(np.ceil(balance * len(x_MD) / k1)), group)
            move(x_MD[mine], code_M[mine], l1_KD, group)
    x_MD = sampled(x_ND, k2, rng)
    return Codebooks(l1_KD, shared(kmeans(x_MD - l1_KD[nearest(x_MD, l1_KD)], k2, iterations, rng, group), k1))


def shared(l2_KD: np.ndarray, k1: int) -> np.ndarray:
    """One second codebook for all L1 codes, float32 [K1, K2, D]."""
    return np.repeat(l2_KD[None], k1, axis=0)


def localise(x_ND: np.ndarray, codebooks: Codebooks, k3: int, balance: float, steps: int, group: Group = ALONE) -> Codebooks:
    """The codebooks with the second level adapted to each L1 code by `steps` balanced Lloyd steps from where it is.

    So an L2 code keeps about the same meaning under every L1 code, but follows the items that are there; a centre without items moves to the item
    farthest from its own. O(steps N K2 D); a worker of `group` adapts every `size`-th codebook.
    """
    z_ND = codebooks.encode(x_ND)
    l1_N, _ = assign_codes(z_ND, codebooks.l1_KD, _capacity(len(z_ND), codebooks, k3, balance), group)
    l2_KKD = codebooks.l2_KKD.copy()
    for l1, rows in enumerate(_members(l1_N, len(l2_KKD))):
        if l1 % group.size != group.rank:
            l2_KKD[l1] = 0  # another worker's: added below
            continue
        r_MD = z_ND[rows] - codebooks.l1_KD[l1]
        for _ in range(steps if len(r_MD) else 0):
            code_M, _ = assign_codes(r_MD, l2_KKD[l1], k3)
            move(r_MD, code_M, l2_KKD[l1])
    return Codebooks(codebooks.l1_KD, group.sum(l2_KKD), codebooks.layers)


def quantise(x_ND: np.ndarray, codebooks: Codebooks, k3: int, balance: float, key_N: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """Codes int32 [N, 3], no two equal, L3 dense in its group; and figures (overflow shares, share of variance explained).

    An L1 code holds at most `balance` times the mean and never more than K2 * K3; a group at most K3. `key_N` orders a group, largest first, ties by
    item_index; without it the order is along the first principal direction of what both levels leave.
    """
    z_ND = codebooks.encode(x_ND)
    l1_N, over1_N = assign_codes(z_ND, codebooks.l1_KD, _capacity(len(z_ND), codebooks, k3, balance))
    l2_N, over2_N = np.zeros(len(z_ND), np.int32), np.zeros(len(z_ND), bool)
    left_ND = np.empty_like(z_ND) if key_N is None else None
    mean_D = z_ND.mean(0, dtype=np.float64)
    squares = np.zeros(3)  # sums of squares: about the mean, after L1, after L2
    for l1, rows in enumerate(_members(l1_N, len(codebooks.l1_KD))):
        residual_MD = z_ND[rows] - codebooks.l1_KD[l1]
        l2_N[rows], over2_N[rows] = assign_codes(residual_MD, codebooks.l2_KKD[l1], k3)
        left_MD = residual_MD - codebooks.l2_KKD[l1, l2_N[rows]]
        squares += [float((part**2).sum(dtype=np.float64)) for part in (z_ND[rows] - mean_D, residual_MD, left_MD)]
        if left_ND is not None:
            left_ND[rows] = left_MD
    if left_ND is not None:
        key_N = left_ND @ _first_direction(left_ND)
    group_N = l1_N.astype(np.int64) * codebooks.l2_KKD.shape[1] + l2_N
    order = np.lexsort((np.arange(len(z_ND)), -np.asarray(key_N, np.float64), group_N))
    l3_N = np.empty(len(z_ND), np.int32)
    l3_N[order] = _rank(group_N[order])
    total = float(squares[0]) or 1.0
    figures = {
        "overflow_l1": round(float(over1_N.mean()), 4),
        "overflow_l2": round(float(over2_N.mean()), 4),
        "overflow": round(float((over1_N | over2_N).mean()), 4),
        "explained_l1": round(1 - float(squares[1]) / total, 4),
        "explained_l2": round(1 - float(squares[2]) / total, 4),
    }
    return np.stack([l1_N, l2_N, l3_N], axis=1), figures


def _members(code_N: np.ndarray, k: int) -> list[np.ndarray]:
    """The rows of each code, in order."""
    return np.split(np.argsort(code_N, kind="stable"), np.cumsum(np.bincount(code_N, minlength=k))[:-1])


def _capacity(items: int, codebooks: Codebooks, k3: int, balance: float) -> int:
    return min(codebooks.l2_KKD.shape[1] * k3, int(np.ceil(balance * items / len(codebooks.l1_KD))))


def _rank(sorted_N: np.ndarray) -> np.ndarray:
    """Place of each entry of a sorted array among its equals, from 0."""
    first_N = np.r_[True, sorted_N[1:] != sorted_N[:-1]]
    place_N = np.arange(len(sorted_N))
    return place_N - np.maximum.accumulate(np.where(first_N, place_N, 0)) if len(sorted_N) else place_N


def _first_direction(x_ND: np.ndarray) -> np.ndarray:
    """Unit vector of largest variance, its largest entry positive so that its sign is not left to the solver."""
    _, vectors = np.linalg.eigh(np.cov(x_ND, rowvar=False, dtype=np.float64).reshape(x_ND.shape[1], -1))
    direction = vectors[:, -1]
    return (direction * np.sign(direction[np.argmax(np.abs(direction))])).astype(np.float32)
