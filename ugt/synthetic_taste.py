"""The taste model of the generator: who watches what next, and the exact probabilities behind it (the oracle).

A catalogue is seen as niches (a genre mix of an era) with item weights, follow-ups (the sequel, the director's next film, the
lead's next film) and popularity. A user has an active niche that is kept for a while and then changes to one of a few favourites,
which themselves drift from an early to a late set. The next item is drawn from a mixture
    p(i) = follow * F[last](i) + echo * F[last but one](i) + taste * T[active niche](i) + rest * popularity(i),
restricted to what the user has not seen. Drawing a component, then an item, and starting over when the item was seen gives exactly
that distribution, costs O(1) per event, and lets the oracle write p down in closed form (the change of niche at the step is summed over).

Shapes: U users, N items, K niches, L events of a user, A active users of a step, M entries of a sparse table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAVOURITES = 4  # niches of a user at a time; few, so that 50 events show them
FOLLOW = 0.21
ECHO = 0.03
TASTE = 0.54
SWITCH = 0.09  # a niche lasts eleven events on average: recent events say which one it is
MAX_TRIES = 64
BLOCK = 4096


@dataclass(frozen=True)
class Rows:
    """Discrete distributions, one per row, sparse: `cdf_M` of row r runs from r to r + 1, so one search draws from any mix of rows."""

    start: NDArray[np.int64]  # [rows + 1]
    items: NDArray[np.int32]  # [M]
    probability: NDArray[np.float64]  # [M], sums to 1 in each non-empty row
    cdf_M: NDArray[np.float64]

    @staticmethod
    def build(rows: int, row: NDArray[np.integer], items: NDArray[np.integer], weight: NDArray[np.floating]) -> Rows:
        """From (row, item, weight) triples in any order; several of one (row, item) are added up."""
        width = int(items.max(initial=0)) + 1
        key, inverse = np.unique(row.astype(np.int64) * width + items, return_inverse=True)
        weight_M = np.bincount(inverse, weights=weight, minlength=len(key))
        row, items_M = key // width, (key % width).astype(np.int32)
        start = np.searchsorted(row, np.arange(rows + 1)).astype(np.int64)
        total = np.bincount(row, weights=weight_M, minlength=rows)
        probability = weight_M / total[row]
        running = np.concatenate([[0.0], np.cumsum(probability)])
        cdf = row + np.minimum(running[1:] - running[start[row]], 1.0)
        if len(row):
            cdf[start[1:][np.diff(start) > 0] - 1] = row[start[1:][np.diff(start) > 0] - 1] + 1.0
        return Rows(start=start, items=items_M, probability=probability, cdf_M=cdf)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self.start)

    def draw(self, rows_A: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int32]:
        """One item per row; the rows must not be empty."""
        at = np.searchsorted(self.cdf_M, rows_A + rng.random(len(rows_A)), side="right")
        return self.items[np.minimum(at, self.start[rows_A + 1] - 1)]

    def add_to(self, scores_AN: NDArray[np.float64], rows_A: NDArray[np.integer], weight_A: NDArray[np.floating]) -> None:
        """scores[a] += weight[a] * row[a], for every a whose row is not negative."""
        for a in np.flatnonzero((rows_A >= 0) & (weight_A > 0)):
            cut = slice(self.start[rows_A[a]], self.start[rows_A[a] + 1])
            scores_AN[a, self.items[cut]] += weight_A[a] * self.probability[cut]


@dataclass(frozen=True)
class Taste:
    """What the events are drawn from: niches [K rows], follow-ups [N rows, may be empty], popularity [1 row over all N]."""

    n_items: int
    niches: Rows
    follow_ups: Rows
    popularity: Rows
    niche_weight_K: NDArray[np.float64]  # how often a niche is somebody's favourite


@dataclass(frozen=True)
class Events:
    """Generated events, users one after the other, oldest first. `truth_UT` is the oracle's ranking at the last event, -1 padded."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    liked: NDArray[np.bool_]  # drawn by taste or as a follow-up, not by popularity
    truth_UT: NDArray[np.int32]
    oracle_users: int


def history_lengths(users: int, events: int, n_items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Events per user: log-normal around events / users, at least 5 and at most a third of the catalogue, summing to `events` where that fits."""
    mean, low, high = events / users, 5, max(6, n_items // 3)
    raw = rng.lognormal(0.0, 0.55, users)
    lengths = np.clip(np.round(raw * (mean / raw.mean())), low, high).astype(np.int64)
    for _ in range(50):
        gap = events - int(lengths.sum())
        if gap == 0:
            break
        room = np.flatnonzero(lengths < high) if gap > 0 else np.flatnonzero(lengths > low)
        if len(room) == 0:
            break
        lengths[rng.permutation(room)[: abs(gap)]] += np.sign(gap)
    return lengths


def generate(taste: Taste, users: int, events: int, seed: int, start_time: int, top: int = 50, oracle_users: int = 10_000) -> Events:
    """Events of `users` users and the oracle's top `top` for the first `oracle_users` of them.

    A user whose next unseen item isn't found in MAX_TRIES draws stops there (only in catalogues that are nearly exhausted).
    """
    rng = np.random.default_rng([seed, 7])
    lengths = history_lengths(users, events, taste.n_items, rng)
    blocks = [
        _block(taste, lengths[at : at + BLOCK], np.random.default_rng([seed, 11, at]), start_time, top, at, oracle_users) for at in range(0, users, BLOCK)
    ]
    sizes = np.concatenate([b[0] for b in blocks])
    return Events(
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        items=np.concatenate([b[1] for b in blocks]),
        timestamps=np.concatenate([b[2] for b in blocks]),
        liked=np.concatenate([b[3] for b in blocks]),
        truth_UT=np.concatenate([b[4] for b in blocks]),
        oracle_users=min(users, oracle_users),
    )


def _block(
    taste: Taste, lengths_U: NDArray[np.int64], rng: np.random.Generator, start_time: int, top: int, first_user: int, oracle_users: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int32]]:
    U, L, K = len(lengths_U), int(lengths_U.max()), len(taste.niche_weight_K)
    favourites_UF, drift_U, preference_UF = _favourites(U, K, taste.niche_weight_K, rng)
    items_UL = np.full((U, L), -1, np.int32)
    liked_UL = np.zeros((U, L), bool)
    gaps_UL = np.zeros((U, L), np.int64)
    niche_U = favourites_UF[np.arange(U), rng.integers(0, FAVOURITES, U)]
    truth_UT = np.full((U, top), -1, np.int32)
    alive_U = np.ones(U, bool)
    done_U = lengths_U.copy()
    for step in range(L):
        users_A = np.flatnonzero(alive_U & (step < lengths_U))
        last_A = items_UL[users_A, step - 1] if step else np.full(len(users_A), -1, np.int32)
        echo_A = items_UL[users_A, step - 2] if step > 1 else np.full(len(users_A), -1, np.int32)
        late_A = step / lengths_U[users_A]
        # the late set of favourites counts more and more; `chances` is the law of the next niche, given a change
        chances_AF = preference_UF[users_A] * np.concatenate(
            [
                np.repeat(1 - late_A * drift_U[users_A], FAVOURITES).reshape(-1, FAVOURITES),
                np.repeat(late_A * drift_U[users_A], FAVOURITES).reshape(-1, FAVOURITES),
            ],
            axis=1,
        )
        chances_AF /= chances_AF.sum(1, keepdims=True)
        ends_A = (step + 1 == lengths_U[users_A]) & (first_user + users_A < oracle_users)
        if ends_A.any():
            truth_UT[users_A[ends_A]] = _oracle(
                taste,
                items_UL[users_A[ends_A], :step],
                last_A[ends_A],
                echo_A[ends_A],
                niche_U[users_A[ends_A]],
                favourites_UF[users_A[ends_A]],
                chances_AF[ends_A],
                top,
            )
        change_A = rng.random(len(users_A)) < SWITCH
        drawn_A = (np.cumsum(chances_AF, axis=1) > rng.random((len(users_A), 1))).argmax(axis=1)
        niche_U[users_A] = np.where(change_A, favourites_UF[users_A, drawn_A], niche_U[users_A])
        chosen_A, liked_A = _draw(taste, items_UL[users_A, :step], last_A, echo_A, niche_U[users_A], rng)
        items_UL[users_A, step] = chosen_A
        liked_UL[users_A, step] = liked_A
        # an evening holds several events; a change of taste comes after a pause of weeks
        evening = rng.random(len(users_A)) < 0.6
        gaps_UL[users_A, step] = np.where(
            evening & ~change_A, rng.integers(5_400, 10_800, len(users_A)), rng.lognormal(12.6, 1.0, len(users_A)).astype(np.int64) + 20_000
        )
        gone = users_A[chosen_A < 0]
        alive_U[gone] = False
        done_U[gone] = step
    times_UL = start_time + rng.integers(0, 3 * 365 * 86_400, U)[:, None] + np.cumsum(np.clip(gaps_UL, 60, 90 * 86_400), axis=1)
    mask_UL = np.arange(L)[None, :] < done_U[:, None]
    return done_U, items_UL[mask_UL], times_UL[mask_UL], liked_UL[mask_UL], truth_UT


def _favourites(U: int, K: int, weight_K: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Early and late favourite niches [U, 2F], how far each user drifts [U], and preferences [U, 2F] that sum to 1 in each half."""
    keys_UK = np.log(weight_K)[None, :] + rng.gumbel(size=(U, K))
    order_UK = np.argsort(-keys_UK, axis=1)
    early, late = order_UK[:, np.arange(FAVOURITES) % K], order_UK[:, (np.arange(FAVOURITES) + FAVOURITES // 2) % K]
    shares = np.concatenate([rng.dirichlet(np.full(FAVOURITES, 1.5), U), rng.dirichlet(np.full(FAVOURITES, 1.5), U)], axis=1)
    return np.concatenate([early, late], axis=1), rng.uniform(0.4, 1.0, U), shares


def _seen(items_AL: NDArray[np.int32], candidate_A: NDArray[np.int32]) -> NDArray[np.bool_]:
    return (items_AL == candidate_A[:, None]).any(axis=1)


def _weights(taste: Taste, last_A: NDArray[np.int32], echo_A: NDArray[np.int32]) -> NDArray[np.float64]:
    """Mixture weights [A, 4] of follow, echo, taste, popularity; an item without follow-ups gives its share to the other two."""
    weights = np.empty((len(last_A), 4))
    sizes = taste.follow_ups.sizes
    weights[:, 0] = FOLLOW * ((last_A >= 0) & (sizes[last_A] > 0))
    weights[:, 1] = ECHO * ((echo_A >= 0) & (sizes[echo_A] > 0))
    weights[:, 2] = TASTE
    weights[:, 3] = 1.0 - FOLLOW - ECHO - TASTE
    return weights / weights.sum(axis=1, keepdims=True)


def _draw(
    taste: Taste, items_AL: NDArray[np.int32], last_A: NDArray[np.int32], echo_A: NDArray[np.int32], niche_A: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    chosen_A, liked_A = np.full(len(last_A), -1, np.int32), np.zeros(len(last_A), bool)
    cumulative = np.cumsum(_weights(taste, last_A, echo_A), axis=1)
    cumulative[:, -1] = 1.0  # rounding must not leave a gap below 1
    everyone = np.zeros(len(last_A), np.int64)
    components: list[tuple[Rows, NDArray[Any]]] = [
        (taste.follow_ups, last_A),
        (taste.follow_ups, echo_A),
        (taste.niches, niche_A),
        (taste.popularity, everyone),
    ]
    todo = np.arange(len(last_A))
    for _ in range(MAX_TRIES):
        part = (cumulative[todo] > rng.random((len(todo), 1))).argmax(axis=1)
        candidate = np.empty(len(todo), np.int32)
        for number, (table, rows) in enumerate(components):
            here = np.flatnonzero(part == number)
            candidate[here] = table.draw(rows[todo[here]], rng)
        fresh = ~_seen(items_AL[todo], candidate)
        chosen_A[todo[fresh]] = candidate[fresh]
        liked_A[todo[fresh]] = part[fresh] < 3
        todo = todo[~fresh]
        if len(todo) == 0:
            break
    return chosen_A, liked_A


def _oracle(
    taste: Taste,
    items_AL: NDArray[np.int32],
    last_A: NDArray[np.int32],
    echo_A: NDArray[np.int32],
    niche_A: NDArray[np.int64],
    favourites_AF: NDArray[np.int64],
    chances_AF: NDArray[np.float64],
    top: int,
) -> NDArray[np.int32]:
    """The `top` most probable unseen items of each user, ties by item index."""
    out = np.full((len(last_A), top), -1, np.int32)
    for at in range(0, len(last_A), 512):
        cut = slice(at, at + 512)
        scores = next_probabilities(taste, items_AL[cut], last_A[cut], echo_A[cut], niche_A[cut], favourites_AF[cut], chances_AF[cut])
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :top].astype(np.int32)
        out[cut, : ranked.shape[1]] = np.where(np.take_along_axis(scores, ranked, axis=1) > 0, ranked, -1)
    return out


def next_probabilities(
    taste: Taste,
    items_AL: NDArray[np.int32],
    last_A: NDArray[np.int32],
    echo_A: NDArray[np.int32],
    niche_A: NDArray[np.int64],
    favourites_AF: NDArray[np.int64],
    chances_AF: NDArray[np.float64],
) -> NDArray[np.float64]:
    """p(next item) [A, N] given what a user has seen, the last two items, the niche so far, and the law of a change of niche.

    The niche is drawn first and kept while seen items are drawn again, so each niche z has its own share 1 / Z(z) of the unseen:
    p(i) = sum over z of P(z) / Z(z) * (common(i) + taste * T[z](i)), with common = follow-ups, echo and popularity.
    """
    weights = _weights(taste, last_A, echo_A)
    common = np.zeros((len(last_A), taste.n_items))
    common[:, taste.popularity.items] += weights[:, 3:4] * taste.popularity.probability[None, :]
    taste.follow_ups.add_to(common, last_A, weights[:, 0])
    taste.follow_ups.add_to(common, echo_A, weights[:, 1])
    unseen = np.ones(common.shape, bool)
    rows, columns = np.nonzero(items_AL >= 0)
    unseen[rows, items_AL[rows, columns]] = False
    common *= unseen
    free_A = common.sum(axis=1)
    scores = np.zeros_like(common)
    share_A = np.zeros(len(last_A))
    niches_AZ = np.concatenate([niche_A[:, None], favourites_AF], axis=1)
    chance_AZ = np.concatenate([np.full((len(niche_A), 1), 1 - SWITCH), SWITCH * chances_AF], axis=1)
    for a in range(len(last_A)):
        for z, chance in zip(niches_AZ[a].tolist(), chance_AZ[a].tolist(), strict=True):
            cut = slice(taste.niches.start[z], taste.niches.start[z + 1])
            items = taste.niches.items[cut]
            part = weights[a, 2] * taste.niches.probability[cut] * unseen[a, items]
            left = free_A[a] + part.sum()
            if left > 0:
                scores[a, items] += chance / left * part
                share_A[a] += chance / left
    return scores + common * share_A[:, None]
