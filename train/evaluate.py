"""Evaluation on each user's held-out last event: UGT's heads beside the baselines and the oracle, over the whole catalogue.

Choices: everybody answers from the same history and is ranked by the same rule; each ranking exists filtered (seen items removed, the target never)
and unfiltered, because publications differ in this. The work is cut into blocks of users that do not depend on how many actors share it, so the same
figures come out on any cluster. Nothing is chosen here: the fusion weight comes with the checkpoint, from validation.

Shapes: U users of a block or all, K places of a ranking, N items, A user attributes, S segments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util import ActorPool

from ugt import histories as history_files
from ugt import metrics
from ugt.artifacts import PREDICTIONS, USERS, read_table, write_text
from ugt.baselines import ItemKnn, blocked_items, popularity, segment_scores, top_items
from ugt.histories import Histories, Split
from ugt.model.config import DecodingConfig
from ugt.model.inputs import UserVocabulary
from ugt.schema import UGTError, User
from ugt.semantic_ids import SemanticIds
from ugt.settings import EvaluationConfig
from ugt.stores.features import ALL, segment_of

HEADS = ("fused", "generative", "dense")
BLOCK_USERS, BLOCK_CELLS = 256, 1 << 24  # of one call: users, and users x items, which bounds its memory to a few hundred MB
MODEL = "ugt"  # the name of the headline: the fused head, filtered
POPULARITY, SEGMENTS, ITEM_KNN, ORACLE = "popularity", "popularity_by_segment", "item_knn", "oracle"
INTERVAL_METRICS = ("recall@10", "ndcg@10")

Rankings = dict[tuple[str, bool], np.ndarray]  # (head or baseline, filtered) -> item indices [U, K], -1 where there are fewer


class Baselines(NamedTuple):
    """What the baselines learned from the training part. `segment_SN` is None where no user has attributes."""

    popularity_N: np.ndarray
    segment_SN: np.ndarray | None
    knn: ItemKnn


@dataclass(frozen=True)
class Workload:
    """Users to rank for: rows of `split`, the codes of their attributes and their segments, row for row."""

    split: Split
    rows_U: np.ndarray
    codes_UA: np.ndarray
    segment_U: np.ndarray


class Scorer:
    """An actor: holds the model once and ranks blocks of users."""

    def __init__(
        self,
        checkpoint_dir: Path,
        semantic_ids_dir: Path,
        baselines: Baselines,
        workloads: Mapping[str, Workload],
        top_k: int,
        decoding: DecodingConfig,
        seed: int,
    ):
        import torch

        torch.set_num_threads(1)  # the actors are the parallelism
        self.checkpoint_dir, self.semantic_ids_dir = checkpoint_dir, semantic_ids_dir
        self.baselines, self.workloads, self.top_k, self.decoding, self.seed = baselines, workloads, top_k, decoding, seed

    @cached_property
    def model(self) -> Any:
        # loaded with the first block, not in __init__: an error then reaches the caller as itself
        from ugt.scoring import load_checkpoint

        return load_checkpoint(self.checkpoint_dir, self.semantic_ids_dir)

    def rank(self, workload: str, block_U: np.ndarray, filtered: bool) -> Rankings:
        """Rankings of the heads and the baselines for a block: `block_U` are places in the workload's rows."""
        from ugt.scoring import load_fusion, rank_users

        work = self.workloads[workload]
        rows_U, codes_UA = work.rows_U[block_U], work.codes_UA[block_U]
        fusion = load_fusion(self.checkpoint_dir)
        heads = rank_users(self.model, work.split, rows_U, "test", filtered, codes_UA, top_k=self.top_k, decoding=self.decoding, fusion=fusion, seed=self.seed)
        ranked: Rankings = {(head, filtered): items_UK for head, items_UK in heads.items()}

        n_items = len(self.baselines.popularity_N)
        examples = [work.split.example(int(u), "test") for u in rows_U]
        seen = [e.items for e in examples]
        blocked_UN = blocked_items(seen, n_items, np.array([e.target for e in examples])) if filtered else None
        popular_UN = np.broadcast_to(self.baselines.popularity_N.astype(np.float32), (len(rows_U), n_items))
        ranked[POPULARITY, filtered] = top_items(popular_UN, self.top_k, blocked_UN)
        if self.baselines.segment_SN is not None:
            ranked[SEGMENTS, filtered] = top_items(self.baselines.segment_SN[work.segment_U[block_U]], self.top_k, blocked_UN)
        ranked[ITEM_KNN, filtered] = top_items(self.baselines.knn.scores(seen), self.top_k, blocked_UN)
        return ranked


def run(
    histories_dir: Path,
    users_dir: Path,
    semantic_ids_dir: Path,
    checkpoint_dir: Path,
    truth: Path | None,
    config: EvaluationConfig,
    decoding: DecodingConfig,
    out_dir: Path,
    min_events: int = 3,
) -> dict[str, Any]:
    """Write `metrics.json` and `predictions.parquet` (docs/evaluation.md names their fields); returns the headline. Needs a running Ray.

    `truth` is the oracle's ranking (a predictions file) where the events were generated; `min_events` as in HistoryConfig. Raises UGTError if nobody can be
    evaluated, if the checkpoint is of another catalogue, or if the truth names none of its items.
    """
    from ugt.scoring import load_fusion, read_card, user_codes

    split = history_files.load(histories_dir).split(min_events)
    rows_U = np.flatnonzero(split.evaluated)
    if len(rows_U) == 0:
        raise UGTError(f"no user in {histories_dir} has {max(3, min_events)} events or more, so nothing can be held out. Give a source with longer histories.")
    item_ids = SemanticIds.load(semantic_ids_dir).item_ids
    user_ids = [split.histories.user_ids[u] for u in rows_U]
    codes_UA = user_codes(users_dir, user_ids, UserVocabulary.from_json(read_card(checkpoint_dir)["vocabulary"]))
    segments, segment_of_user = _segments(users_dir, split.histories.user_ids)
    work = Workload(split, rows_U, codes_UA, segment_of_user[rows_U])
    baselines = _fit_baselines(split, len(item_ids), segments, segment_of_user, config.knn_neighbours)

    tasks = [("test", True), ("test", False)]
    workloads = {"test": work}
    if len(rows_U) > 1:
        workloads["permuted"] = _permuted(work, config.seed)
        tasks.append(("permuted", True))
    ranked = _rank_all(checkpoint_dir, semantic_ids_dir, baselines, workloads, tasks, config.top_k, decoding, config.seed)

    target_U = _targets(work)
    rankings = ranked["test"]
    values = {name: metrics.ranking_metrics(ranking_UK, target_U, _cutoffs(config.top_k)) for name, ranking_UK in rankings.items()}
    known_U = np.zeros(len(rows_U), dtype=bool)
    if truth is not None:
        oracle_UK, known_U = _read_truth(truth, user_ids, item_ids, config.top_k)
        rankings[ORACLE, True] = oracle_UK
        values[ORACLE, True] = metrics.ranking_metrics(oracle_UK[known_U], target_U[known_U], _cutoffs(config.top_k))

    vector_ND = np.load(Path(semantic_ids_dir) / "item_vectors.npy")
    figures: dict[tuple[str, bool], dict[str, float]] = {}
    for name, ranking_UK in rankings.items():
        listed_UK = ranking_UK[known_U] if name[0] == ORACLE else ranking_UK
        figures[name] = metrics.means(values[name]) | metrics.beyond_accuracy(listed_UK, baselines.popularity_N, vector_ND)
    headline = {MODEL: figures["fused", True]} | {name: figures[name, True] for name in (POPULARITY, ITEM_KNN, ORACLE) if (name, True) in figures}
    permuted: dict[str, Any] = {}
    if "permuted" in workloads:
        permuted = _permuted_check(ranked["permuted"], workloads["permuted"], values["fused", True]["recall@10"], config)
    report = {
        "protocol": _protocol(split, work, item_ids, config, decoding, load_fusion(checkpoint_dir), int(known_U.sum())),
        "metrics": headline,
        "heads": {head: _both(figures, head) for head in HEADS},
        "baselines": {name: _both(figures, name) for name in (POPULARITY, SEGMENTS, ITEM_KNN, ORACLE) if (name, True) in figures},
        "intervals": _intervals(values, known_U, config),
        "permuted": permuted,
        "alarms": _alarms(headline, len(item_ids)),
    }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_predictions(out_dir / "predictions.parquet", rankings, user_ids, item_ids, known_U)
    write_text(out_dir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))
    shown = {"recall@10": headline[MODEL]["recall@10"], "ndcg@10": headline[MODEL]["ndcg@10"]}
    shown |= {f"{name}_recall@10": row["recall@10"] for name, row in headline.items() if name != MODEL}
    return shown | {"users": len(rows_U), "permuted_recall@10": permuted.get("recall@10"), "alarms": report["alarms"]}


def write_predictions(path: Path, rankings: Rankings, user_ids: Sequence[str], item_ids: Sequence[str], oracle_U: np.ndarray) -> None:
    """The item ids of every ranking, one row per user, head and filter rule, in the order of the users."""
    ids, users = pa.array(item_ids, pa.string()), pa.array(user_ids, pa.string())
    with pq.ParquetWriter(path, PREDICTIONS, compression="zstd") as writer:
        for (head, filtered), ranking_UK in rankings.items():
            rows = np.flatnonzero(oracle_U) if head == ORACLE else np.arange(len(ranking_UK))
            listed_UK = ranking_UK[rows]
            offsets = np.concatenate([[0], np.cumsum((listed_UK >= 0).sum(1))]).astype(np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), ids.take(pa.array(listed_UK[listed_UK >= 0])))
            columns = [users.take(pa.array(rows)), pa.array([head] * len(rows), pa.string()), pa.array([filtered] * len(rows)), lists]
            writer.write_table(pa.Table.from_arrays(columns, schema=PREDICTIONS))


def _rank_all(
    checkpoint_dir: Path,
    semantic_ids_dir: Path,
    baselines: Baselines,
    workloads: Mapping[str, Workload],
    tasks: Sequence[tuple[str, bool]],
    top_k: int,
    decoding: DecodingConfig,
    seed: int,
) -> dict[str, Rankings]:
    """Rankings of every workload, in the order of its rows."""
    # long histories share a block, so little is padded, and go first, so that no actor is left with the longest alone
    lengths = {name: w.split.histories.lengths[w.rows_U] for name, w in workloads.items()}
    calls = [
        (name, filtered, block_U) for name, filtered in tasks for block_U in _blocks(np.argsort(-lengths[name], kind="stable"), len(baselines.popularity_N))
    ]
    shared = [ray.put(baselines), ray.put(dict(workloads))]
    # half of the CPUs: each actor computes with one thread, and the driver, the store and the other steps' actors need room
    count = max(1, min(len(calls), int(ray.cluster_resources().get("CPU", 1)) // 2))
    scorer = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(Scorer)
    actors = [scorer.remote(Path(checkpoint_dir), Path(semantic_ids_dir), *shared, top_k, decoding, seed) for _ in range(count)]
    try:
        answers = list(ActorPool(actors).map(lambda actor, call: actor.rank.remote(call[0], call[2], call[1]), calls))
    finally:
        for actor in actors:
            ray.kill(actor)
    ranked: dict[str, Rankings] = {name: {} for name in workloads}
    for (name, _, block_U), answer in zip(calls, answers, strict=True):
        for key, items_UK in answer.items():
            whole = ranked[name].setdefault(key, np.full((len(workloads[name].rows_U), top_k), -1, dtype=np.int64))
            whole[block_U] = items_UK
    return ranked


def _blocks(order_U: np.ndarray, n_items: int) -> Iterator[np.ndarray]:
    size = max(1, min(BLOCK_USERS, BLOCK_CELLS // n_items))
    for start in range(0, len(order_U), size):
        yield order_U[start : start + size]


def _fit_baselines(split: Split, n_items: int, segments: int, segment_of_user: np.ndarray, neighbours: int) -> Baselines:
    h = split.histories
    user_E = np.repeat(np.arange(len(h)), h.lengths)
    place_E = np.arange(len(h.items)) - h.offsets[:-1][user_E]
    train_E = place_E < split.train_lengths[user_E]
    user_E, item_E = user_E[train_E], h.items[train_E]
    segment_SN = segment_scores(segment_of_user[user_E], item_E, segments, n_items) if segments > 1 else None
    return Baselines(popularity(item_E, n_items), segment_SN, ItemKnn.fit(user_E, item_E, len(h), n_items, neighbours))


def _segments(users_dir: Path, user_ids: Sequence[str]) -> tuple[int, np.ndarray]:
    """Number of segments and the segment of each user, as serving defines them; a user without attributes is in the first."""
    rows = read_table(Path(users_dir), USERS).to_pylist()
    named = {row["user_id"]: segment_of(User(**row)) for row in rows}
    numbers = {ALL: 0} | {name: i for i, name in enumerate(sorted(set(named.values()) - {ALL}), start=1)}
    return len(numbers), np.array([numbers[named.get(user_id, ALL)] for user_id in user_ids])


def _permuted(work: Workload, seed: int) -> Workload:
    """The same targets, each with the history, attributes and moment of another user: nobody keeps the own one."""
    cycle_U = np.random.default_rng(seed).permutation(len(work.rows_U))
    other_U = np.empty_like(cycle_U)
    other_U[cycle_U] = np.roll(cycle_U, 1)
    given = [work.split.example(int(work.rows_U[o]), "test") for o in other_U]
    target_U = _targets(work)
    h = work.split.histories
    permuted = Histories(
        user_ids=[h.user_ids[u] for u in work.rows_U],
        offsets=np.concatenate([[0], np.cumsum([len(e.items) + 1 for e in given])]).astype(np.int64),
        items=np.concatenate([np.append(e.items, np.int32(t)) for e, t in zip(given, target_U, strict=True)]).astype(np.int32),
        # what follows the last event of a history is never read: it stands beside the target
        actions=np.concatenate([np.append(e.actions, np.int32(0)) for e in given]).astype(np.int32),
        values=np.concatenate([np.append(e.values, np.float32(np.nan)) for e in given]).astype(np.float32),
        timestamps=np.concatenate([np.append(e.timestamps, e.target_timestamp) for e in given]).astype(np.int64),
    )
    return Workload(permuted.split(), np.arange(len(given)), work.codes_UA[other_U], work.segment_U[other_U])


def _permuted_check(ranked: Rankings, work: Workload, own_U: np.ndarray, config: EvaluationConfig) -> dict[str, Any]:
    """With someone else's history the model knows nothing of the target's user, so it may not beat popularity.

    `own_U` is recall@10 per user with the own history. Popularity is filtered by the same permuted histories.
    `falls_to_popularity`: the paired interval of the difference is not above 0.
    """
    target_U = _targets(work)
    fused_U, popular_U = (metrics.ranking_metrics(ranked[name, True], target_U, (10,))["recall@10"] for name in ("fused", POPULARITY))
    difference = metrics.paired_difference(fused_U, popular_U, config.bootstrap_samples, config.seed)
    loss = metrics.paired_difference(own_U, fused_U, config.bootstrap_samples, config.seed)
    return {
        "recall@10": float(fused_U.mean()),
        "popularity_recall@10": float(popular_U.mean()),
        "minus_popularity_recall@10": [difference.low, difference.high],
        "own_minus_permuted_recall@10": [loss.low, loss.high],
        "falls_to_popularity": difference.low <= 0.0,
    }


def _intervals(values: Mapping[tuple[str, bool], dict[str, np.ndarray]], known_U: np.ndarray, config: EvaluationConfig) -> dict[str, list[float | None]]:
    """95% intervals: each model's own figures, UGT minus and over each other model, over the same users. None stands for infinite."""
    intervals: dict[str, list[float | None]] = {}
    for metric in INTERVAL_METRICS:
        own_U = values["fused", True][metric]
        intervals[f"{MODEL}_{metric}"] = _finite(metrics.mean_interval(own_U, config.bootstrap_samples, config.seed))
        for name in (POPULARITY, ITEM_KNN, ORACLE):
            if (name, True) not in values:
                continue
            other_U = values[name, True][metric]
            same_U = own_U[known_U] if name == ORACLE else own_U
            intervals[f"{name}_{metric}"] = _finite(metrics.mean_interval(other_U, config.bootstrap_samples, config.seed))
            intervals[f"{MODEL}_minus_{name}_{metric}"] = _finite(metrics.paired_difference(same_U, other_U, config.bootstrap_samples, config.seed))
            intervals[f"{MODEL}_over_{name}_{metric}"] = _finite(metrics.paired_ratio(same_U, other_U, config.bootstrap_samples, config.seed))
    return intervals


def _finite(interval: metrics.Interval) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in (interval.low, interval.high)]


def _read_truth(truth: Path, user_ids: Sequence[str], item_ids: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's ranking as item indices [U, top_k] and which users it speaks of; items that are not in the catalogue are passed over."""
    index = {item_id: i for i, item_id in enumerate(item_ids)}
    listed = {row["user_id"]: row["item_ids"] for row in read_table(Path(truth), PREDICTIONS).to_pylist()}
    ranking_UK = np.full((len(user_ids), top_k), -1, dtype=np.int64)
    known_U = np.array([user_id in listed for user_id in user_ids], dtype=bool)
    for row in np.flatnonzero(known_U):
        kept = [index[i] for i in listed[user_ids[row]] if i in index][:top_k]
        ranking_UK[row, : len(kept)] = kept
    if (ranking_UK < 0).all():
        raise UGTError(f"{truth} names none of the users and items of this catalogue. Give the truth that was generated with these events, or none.")
    return ranking_UK, known_U


def _targets(work: Workload) -> np.ndarray:
    """int64 [U]: the item of each user's last event."""
    h = work.split.histories
    return h.items[h.offsets[work.rows_U + 1] - 1].astype(np.int64)


def _cutoffs(top_k: int) -> tuple[int, ...]:
    return tuple(k for k in metrics.CUTOFFS if k <= top_k)


def _both(figures: Mapping[tuple[str, bool], dict[str, float]], name: str) -> dict[str, dict[str, float]]:
    return {word: figures[name, filtered] for word, filtered in (("filtered", True), ("unfiltered", False)) if (name, filtered) in figures}


def _alarms(headline: Mapping[str, Mapping[str, float]], n_items: int) -> list[str]:
    """What no healthy model does."""
    distinct = int(headline[MODEL]["distinct@10"])
    expected = min(100, n_items // 3)
    return [f"only {distinct} distinct items in all top-10 lists (fewer than {expected})"] if distinct < expected else []


def _protocol(
    split: Split, work: Workload, item_ids: Sequence[str], config: EvaluationConfig, decoding: DecodingConfig, fusion: Any, oracle_users: int
) -> dict[str, Any]:
    """How these figures came about, in words and numbers."""
    target_U = _targets(work)
    repeats = sum(int(t) in set(work.split.example(int(u), "test").items.tolist()) for u, t in zip(work.rows_U, target_U, strict=True))
    return {
        "split": "leave-one-out: the last event of a user is the test target, the one before it validation; a test history includes the validation event",
        "tie_rule_events": "events of a user in the order of (timestamp, place in the source file)",
        "ranking": "the whole catalogue; dense head and baselines score every item, the generative head gives its beam, fused is the union of both heads' best",
        "tie_rule_rankings": "higher score first, then lower item index (items in ascending order of id)",
        "filter_rule": "filtered: items of the user's history are removed before the top is taken, except the target",
        "users": len(split.histories),
        "users_evaluated": len(work.rows_U),
        "users_of_oracle": oracle_users,
        "catalogue": len(item_ids),
        "train_events": int(split.train_lengths.sum()),
        "targets_seen_before": repeats,
        "top_k": config.top_k,
        "beam_width": decoding.beam_width,
        "decoding": decoding.model_dump(mode="json"),
        "fusion": {"method": fusion.method, "weight": fusion.weight, "chosen_on": "validation"},
        "knn_neighbours": config.knn_neighbours,
        "intervals": f"95%, percentile bootstrap over users, {config.bootstrap_samples} resamples, paired",
        "seed": config.seed,
    }
