"""The baselines of an evaluation, fitted on the training part of the histories; what has to be chosen is chosen on validation, by filtered NDCG@10.

Writes `baselines.json` (names, choices, every candidate with its validation figure), `popularity.npy` (int64 [N]), `segment_of_user.npy` (int64 [U], rows of
the histories), and one array file per baseline. `load` reads them back. SASRec trains in a step of its own (`train/sasrec.py`).

Shapes: U users, N items, S segments of users, W width of the Word2Vec vectors.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from ugt import histories as history_files
from ugt.artifacts import ITEMS, USERS, read_table, write_text
from ugt.baselines import ItemKnn, NearestVectors, Popularity, Ranker, Transitions, popularity, segment_scores
from ugt.evaluation import BaselineConfig
from ugt.histories import HistoryConfig, Split
from ugt.schema import UGTError, User
from ugt.stores.features import ALL, segment_of
from ugt.topk import blocked_items, target_places

CARD = "baselines.json"
LAGS = 3
# pooling of the last events' vectors: how many, and how fast the older ones fade
POOLING = [{"last": last, "decay": decay} for last, decay in ((0, 1.0), (20, 1.0), (10, 1.0), (5, 1.0), (3, 1.0), (1, 1.0), (0, 0.9), (0, 0.8), (0, 0.6))]
TRANSITIONS = [
    {"lag_decay": lag_decay, "recency": recency, "damping": damping}
    for lag_decay, recency, damping in itertools.product((0.0, 0.25, 0.5, 0.75, 1.0), (0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 0.5, 1.0))
]
CHOICE_CELLS = 1 << 24  # users x items scored at once while choosing; 64 MB


class Fitted(NamedTuple):
    """The rankers by name, in the order of the table, and what the figures need besides."""

    rankers: dict[str, Ranker]
    popularity_N: np.ndarray
    segment_of_user: np.ndarray
    card: dict[str, Any]


def run(
    etl_dir: Path, histories_dir: Path, word2vec_dir: Path, config: BaselineConfig, out_dir: Path, history: HistoryConfig = HistoryConfig()
) -> dict[str, Any]:
    """Fit `config.names` and write the folder; returns the choices. Raises UGTError if the vectors are of another catalogue."""
    n_items = read_table(Path(etl_dir) / "items", ITEMS).num_rows
    split = history.apply(history_files.load(histories_dir))
    user_E, item_E = split.train_events()
    segments, segment_of_user = _segments(Path(etl_dir) / "users", split.histories.user_ids)
    users = split.users("validation")
    users = np.sort(np.random.default_rng(config.seed).permutation(users)[: config.validation_users])
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    np.save(out_dir / "popularity.npy", popularity(item_E, n_items))
    np.save(out_dir / "segment_of_user.npy", segment_of_user)
    chosen: dict[str, Any] = {}
    names = [name for name in config.names if name != "popularity_by_segment" or segments > 1]
    for name in names:
        if name == "popularity_by_segment":
            np.save(out_dir / "segment_scores.npy", segment_scores(segment_of_user[user_E], item_E, segments, n_items))
        elif name == "item_knn":
            sp.save_npz(out_dir / "item_knn.npz", ItemKnn.fit(user_E, item_E, len(split.histories), n_items, config.knn_neighbours).similarity_NN)
        elif name == "word2vec":
            vector_NW = np.load(Path(word2vec_dir) / "word2vec.npy")
            if len(vector_NW) != n_items:
                raise UGTError(f"{word2vec_dir} has vectors of {len(vector_NW):,} items, the catalogue has {n_items:,}. Run `ugt train word2vec` again.")
            np.save(out_dir / "word2vec.npy", vector_NW)
            chosen[name] = choose(NearestVectors(vector_NW), POOLING, split, users, n_items)
        elif name == "transitions":
            transitions = Transitions.fit(user_E, item_E, n_items, LAGS)
            for lag, count_NN in enumerate(transitions.count_LNN, start=1):
                sp.save_npz(out_dir / f"transitions_{lag}.npz", count_NN)
            chosen[name] = choose(transitions, TRANSITIONS, split, users, n_items)
    card = {"names": names, "items": n_items, "users": len(split.histories), "validation_users": len(users), "chosen": chosen}
    card |= {"knn_neighbours": config.knn_neighbours, "lags": LAGS, "criterion": "NDCG@10, seen items filtered, on validation"}
    write_text(out_dir / CARD, json.dumps(card, indent=1))
    return {"baselines": len(names), "validation_users": len(users)} | {f"{name}_validation_ndcg@10": c["validation_ndcg@10"] for name, c in chosen.items()}


def load(folder: Path) -> Fitted:
    """What `run` wrote. Raises UGTError if it is not there."""
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text())
    except FileNotFoundError as error:
        raise UGTError(f"no baselines in {folder}. Run `ugt evaluate`, which fits them.") from error
    count_N = np.load(folder / "popularity.npy")
    rankers: dict[str, Ranker] = {}
    for name in card["names"]:
        settings = card["chosen"].get(name, {}).get("settings", {})
        if name == "popularity":
            rankers[name] = Popularity(count_N[None].astype(np.float32))
        elif name == "popularity_by_segment":
            rankers[name] = Popularity(np.load(folder / "segment_scores.npy"))
        elif name == "item_knn":
            rankers[name] = ItemKnn(sp.load_npz(folder / "item_knn.npz"))
        elif name == "word2vec":
            rankers[name] = NearestVectors(np.load(folder / "word2vec.npy"), **settings)
        elif name == "transitions":
            rankers[name] = Transitions(tuple(sp.load_npz(folder / f"transitions_{lag}.npz") for lag in range(1, card["lags"] + 1)), count_N, **settings)
    return Fitted(rankers, count_N, np.load(folder / "segment_of_user.npy"), card)


def choose(fitted: NearestVectors | Transitions, candidates: Sequence[dict[str, Any]], split: Split, users: np.ndarray, n_items: int) -> dict[str, Any]:
    """The candidate settings with the best filtered NDCG@10 on the validation targets of `users`, and the figure of each; without users, the first."""
    figures = [round(validation_ndcg(dataclasses.replace(fitted, **settings).scores, split, users, n_items), 6) for settings in candidates]
    best = int(np.argmax(figures)) if len(users) else 0
    tried = [{"settings": settings, "validation_ndcg@10": figure} for settings, figure in zip(candidates, figures, strict=True)]
    return tried[best] | {"tried": tried}


def validation_ndcg(scores: Callable[[Sequence[np.ndarray]], np.ndarray], split: Split, users: np.ndarray, n_items: int) -> float:
    """Filtered NDCG@10 on the validation targets of `users`; `scores(histories)` is float32 [U, N]. 0.0 without users."""
    gain = 0.0
    size = max(1, CHOICE_CELLS // n_items)
    for start in range(0, len(users), size):
        block = users[start : start + size]
        seen, target_U = histories_before(split, block, "validation"), split.targets(block, "validation")
        place_U = target_places(scores(seen), target_U, blocked_items(seen, n_items, target_U))
        gain += float((1.0 / np.log2(place_U[place_U <= 10] + 1)).sum())
    return gain / max(1, len(users))


def histories_before(split: Split, users: Iterable[int], part: history_files.Part) -> list[np.ndarray]:
    """Items of each user before the target of this part, oldest first."""
    h, at = split.histories, split.at(part)
    return [h.items[h.offsets[u] : h.offsets[u] + at[u]] for u in users]


def _segments(users_dir: Path, user_ids: Sequence[str]) -> tuple[int, np.ndarray]:
    """Number of segments and the segment of each user, as serving defines them; a user without attributes is in the first."""
    rows = read_table(Path(users_dir), USERS).to_pylist()
    named = {row["user_id"]: segment_of(User(**row)) for row in rows}
    numbers = {ALL: 0} | {name: i for i, name in enumerate(sorted(set(named.values()) - {ALL}), start=1)}
    return len(numbers), np.array([numbers[named.get(user_id, ALL)] for user_id in user_ids], dtype=np.int64)
