"""The taste model over a real catalogue: niches are first genre x era, popularity the votes, follow-ups the same people's films."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ugt.synthetic_taste import Rows, Taste

MAX_NICHES = 96
ERA_YEARS = 20
PEOPLE_SHARE = {"director": 2.0, "actor": 1.0}


def taste_of(items: pa.Table, credits: pa.Table, seed: int) -> Taste:
    """Taste over `items` (row order = item index). Titles without votes keep a small weight: they exist, few see them."""
    n = items.num_rows
    rng = np.random.default_rng([seed, 29])
    votes = np.array([v or 0 for v in items["votes"].to_pylist()], float)
    popularity = np.empty(n)
    # Zipf's law over the order of votes: the files' heads hold few famous titles, the law keeps the head of the curve anyway
    popularity[np.lexsort((rng.random(n), -votes))] = (np.arange(n) + 4.0) ** -1.0
    popularity /= popularity.sum()
    years = np.array([y or 0 for y in items["year"].to_pylist()])
    labels = [f"{genres[0] if genres else '-'}/{year // ERA_YEARS}" for genres, year in zip(items["genres"].to_pylist(), years.tolist(), strict=True)]
    names, niche, count = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.argsort(-count, kind="stable")[:MAX_NICHES]
    place = np.full(len(names), len(kept) - 1)
    place[kept] = np.arange(len(kept))  # rare combinations share the last niche
    niche_K = np.bincount(place[niche], weights=popularity, minlength=len(kept))
    return Taste(
        n_items=n,
        niches=Rows.build(len(kept), place[niche], np.arange(n), popularity),
        follow_ups=_follow_ups(n, years, credits),
        popularity=Rows.build(1, np.zeros(n, np.int64), np.arange(n), popularity),
        niche_weight_K=np.sqrt(niche_K),
    )


def _follow_ups(n: int, years: np.ndarray, credits: pa.Table) -> Rows:
    """The next and the next but one film of the same director or actor."""
    person = np.unique(np.array(credits["person_id"].to_pylist(), dtype=str), return_inverse=True)[1]
    role = np.array(credits["role"].to_pylist(), dtype=str)
    item = credits["item_index"].to_numpy()
    rows, targets, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for name, share in PEOPLE_SHARE.items():
        chosen = role == name
        order = np.lexsort((item[chosen], years[item[chosen]], person[chosen]))
        who, what = person[chosen][order], item[chosen][order]
        for step, weight in ((1, 1.0), (2, 0.4)):
            same = (who[:-step] == who[step:]) & (what[:-step] != what[step:])
            rows.append(what[:-step][same])
            targets.append(what[step:][same])
            weights.append(np.full(int(same.sum()), weight * share))
    return Rows.build(n, np.concatenate(rows).astype(np.int64), np.concatenate(targets).astype(np.int64), np.concatenate(weights))
