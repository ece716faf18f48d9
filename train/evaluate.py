"""Evaluation on held-out events: UGT's heads beside the baselines and the oracle, over the whole catalogue; figures, intervals, slices, report.

Choices: everybody answers from the same history and is ranked by the same rule (`train/ranking.py`); each ranking exists filtered (seen items removed, the
target never) and unfiltered, because publications differ in this. Nothing is chosen here: the weights of the fusion come with the checkpoint and the
baselines' settings with theirs, both from validation.

Shapes: U users, K places of a ranking (-1 where there are fewer), N items, M columns of per-user values, S resamples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train import baselines
from train.ranking import HEADS, Rankings, Sources, Workload, load_rankers, permuted, rank_all
from ugt import histories as history_files
from ugt import metrics, report_page, slices
from ugt.artifacts import PER_USER, PREDICTIONS, read_table, write_text
from ugt.evaluation import EvaluationConfig
from ugt.histories import HistoryConfig, Split
from ugt.model.config import DecodingConfig
from ugt.model.inputs import UserVocabulary
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIds

MODEL = "ugt"  # the name of the headline: the fused head, filtered
ORACLE = "oracle"
PERMUTED_USERS = 5000  # a random set; what a leak would show, it shows on them
INTERVAL_METRICS = ("recall@10", "ndcg@10")
SPLITS = {
    "leave_one_out": "leave-one-out: the last event of a user is the test target, the one before it validation; a test history includes the validation event",
    "time": "time: training ends at the first cut; a user's first event between the cuts is the validation target, the first one from the second cut on the "
    "test target; a history is all that precedes its target",
}

Values = dict[tuple[str, bool], dict[str, np.ndarray]]  # (head or baseline, filtered) -> metric -> per-user value [U]


def run(
    histories_dir: Path,
    users_dir: Path,
    semantic_ids_dir: Path,
    checkpoint_dir: Path,
    baselines_dir: Path,
    sasrec_dir: Path | None,
    truth: Path | None,
    config: EvaluationConfig,
    decoding: DecodingConfig,
    out_dir: Path,
    history: HistoryConfig = HistoryConfig(),
    curve_dirs: Mapping[str, Path] | None = None,
    actors: int | None = None,
) -> dict[str, Any]:
    """Write `metrics.json`, `predictions.parquet`, `per_user.parquet` and `report.html` (docs/evaluation.md names their fields); returns the headline.

    `truth` is the oracle's ranking (a predictions file) where the events were generated; `curve_dirs` the folders of the training curves, for the report;
    `actors` as in `rank_all`: None needs a running Ray, 0 needs none. Raises UGTError if nobody can be evaluated, if checkpoint or baselines are
    of another catalogue, or if the truth names none of its items.
    """
    from ugt.scoring import read_card, user_codes

    split = history.apply(history_files.load(histories_dir))
    rows_U = split.users("test")
    if len(rows_U) == 0:
        raise UGTError(_nobody(histories_dir, history))
    item_ids = SemanticIds.load(semantic_ids_dir).item_ids
    fitted = baselines.load(baselines_dir)
    if fitted.card["items"] != len(item_ids) or fitted.card["users"] != len(split.histories):
        raise UGTError(
            f"the baselines in {baselines_dir} are of another catalogue: fitted on {fitted.card['items']:,} items and {fitted.card['users']:,} users; these "
            f"are {len(item_ids):,} and {len(split.histories):,}. Run `ugt evaluate` with the settings of this model, which fits them anew."
        )
    user_ids = [split.histories.user_ids[u] for u in rows_U]
    codes_UA = user_codes(users_dir, user_ids, UserVocabulary.from_json(read_card(checkpoint_dir)["vocabulary"]))
    work = Workload(split, rows_U, codes_UA, fitted.segment_of_user[rows_U])
    some_U = np.sort(np.random.default_rng(config.seed).permutation(len(rows_U))[:PERMUTED_USERS])
    workloads = {"test": work} | ({"permuted": permuted(work.of(some_U), config.seed)} if len(rows_U) > 1 else {})
    folders = (Path(checkpoint_dir), Path(semantic_ids_dir), Path(baselines_dir), Path(sasrec_dir) if sasrec_dir else None)
    sources = Sources(*folders, config.top_k, decoding, config.seed)
    rankers = load_rankers(sources)
    ranked = rank_all(sources, rankers, workloads, len(item_ids), actors)

    rankings, cutoffs = ranked["test"], tuple(k for k in metrics.CUTOFFS if k <= config.top_k)
    place = {name: metrics.places(ranking_UK, work.target_U) for name, ranking_UK in rankings.items()}
    values: Values = {name: metrics.of_places(place_U, cutoffs) for name, place_U in place.items()}
    known_U = np.zeros(len(rows_U), dtype=bool)
    if truth is not None:
        rankings[ORACLE, True], known_U = _read_truth(truth, user_ids, item_ids, config.top_k)
        place[ORACLE, True] = metrics.places(rankings[ORACLE, True], work.target_U)
        values[ORACLE, True] = metrics.of_places(place[ORACLE, True][known_U], cutoffs)
    vector_ND = np.load(Path(semantic_ids_dir) / "item_vectors.npy")
    figures: dict[tuple[str, bool], dict[str, float]] = {}
    for name, ranking_UK in rankings.items():
        listed_UK = ranking_UK[known_U] if name[0] == ORACLE else ranking_UK
        figures[name] = metrics.means(values[name]) | metrics.beyond_accuracy(listed_UK, fitted.popularity_N, vector_ND)

    beside = [*rankers, *([ORACLE] if truth is not None else [])]
    headline = {MODEL: figures["fused", True]} | {name: figures[name, True] for name in beside}
    length_U, count_U = split.test_at[rows_U], fitted.popularity_N[work.target_U]
    report = {
        "protocol": _protocol(work, history, item_ids, config, decoding, read_card(checkpoint_dir)["fusion"], fitted.card, int(known_U.sum())),
        "metrics": headline,
        "heads": {head: _both(figures, head) for head in HEADS},
        "baselines": {name: _both(figures, name) for name in beside},
        **_intervals(values, known_U, config),
        "slices": _slices(values, length_U, count_U, config),
        "permuted": _permuted_check(ranked.get("permuted"), work.target_U[some_U], values["fused", True]["recall@10"][some_U], config),
        "alarms": _alarms(headline, len(item_ids)),
    }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_predictions(out_dir / "predictions.parquet", rankings, user_ids, item_ids, known_U)
    _write_per_user(out_dir / "per_user.parquet", place, user_ids, [item_ids[i] for i in work.target_U], length_U, count_U, known_U)
    write_text(out_dir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))
    write_text(out_dir / "report.html", report_page.build(report, report_page.read_curves(curve_dirs or {})))
    shown = {"recall@10": headline[MODEL]["recall@10"], "ndcg@10": headline[MODEL]["ndcg@10"]}
    shown |= {f"{name}_recall@10": row["recall@10"] for name, row in headline.items() if name != MODEL}
    return shown | {"users": len(rows_U), "permuted_recall@10": report["permuted"].get("recall@10"), "alarms": report["alarms"]}


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


def _write_per_user(
    path: Path,
    place: Mapping[tuple[str, bool], np.ndarray],
    user_ids: Sequence[str],
    target_ids: Sequence[str],
    length_U: np.ndarray,
    count_U: np.ndarray,
    oracle_U: np.ndarray,
) -> None:
    """PER_USER rows of every ranking."""
    fixed = [pa.array(user_ids, pa.string()), pa.array(target_ids, pa.string()), pa.array(length_U, pa.int32()), pa.array(count_U, pa.int32())]
    with pq.ParquetWriter(path, PER_USER, compression="zstd") as writer:
        for (head, filtered), place_U in place.items():
            rows = np.flatnonzero(oracle_U) if head == ORACLE else np.arange(len(place_U))
            count = len(rows)
            own = [pa.array([head] * count, pa.string()), pa.array([filtered] * count), pa.array(place_U[rows], pa.int32(), mask=place_U[rows] == 0)]
            writer.write_table(pa.Table.from_arrays([column.take(pa.array(rows)) for column in fixed] + own, schema=PER_USER))


def _nobody(histories_dir: Path, history: HistoryConfig) -> str:
    if history.split == "time":
        return (
            f"no user in {histories_dir} has {max(1, history.min_events - 2)} events or more before the time split's last cut and one after it, so nothing can "
            "be held out. Lower histories.test_from, or set histories.split to leave_one_out."
        )
    return f"no user in {histories_dir} has {max(3, history.min_events)} events or more, so nothing can be held out. Give a source with longer histories."


def _intervals(values: Values, known_U: np.ndarray, config: EvaluationConfig) -> dict[str, Any]:
    """All intervals, of the same resamples; None stands for infinite.

    `intervals`: the headline's, by flat names (own, UGT minus and over each other model); `intervals_by_rule`: each ranking's own; `fused_minus`: the
    difference of the fused head to every other ranking under the same rule.
    """
    keys = [(name, metric) for name in values if name[0] != ORACLE for metric in INTERVAL_METRICS]
    drawn_SM = metrics.bootstrap_means(np.stack([values[name][metric] for name, metric in keys], 1), config.bootstrap_samples, config.seed)
    drawn = {key: drawn_SM[:, i] for i, key in enumerate(keys)}
    by_rule: dict[str, dict[str, dict[str, Any]]] = {"filtered": {}, "unfiltered": {}}
    minus: dict[str, dict[str, dict[str, Any]]] = {"filtered": {}, "unfiltered": {}}
    for (name, filtered), metric in keys:
        rule = "filtered" if filtered else "unfiltered"
        by_rule[rule].setdefault(name, {})[metric] = _finite(drawn[(name, filtered), metric])
        if name != "fused":
            minus[rule].setdefault(name, {})[metric] = _finite(drawn[("fused", filtered), metric] - drawn[(name, filtered), metric])
    flat: dict[str, list[float | None]] = {}
    others = [name for name, filtered in values if filtered and name not in HEADS]
    for metric in INTERVAL_METRICS:
        flat[f"{MODEL}_{metric}"] = by_rule["filtered"]["fused"][metric]
        for name in others:
            if name == ORACLE:  # it was asked for some users only
                both_U2 = np.stack([values["fused", True][metric][known_U], values[ORACLE, True][metric]], 1)
                own_S, other_S = metrics.bootstrap_means(both_U2, config.bootstrap_samples, config.seed).T
            else:
                own_S, other_S = drawn[("fused", True), metric], drawn[(name, True), metric]
            flat[f"{name}_{metric}"] = _finite(other_S)
            flat[f"{MODEL}_minus_{name}_{metric}"] = _finite(own_S - other_S)
            flat[f"{MODEL}_over_{name}_{metric}"] = _finite(metrics.ratio(own_S, other_S))
    return {"intervals": flat, "intervals_by_rule": by_rule, "fused_minus": minus}


def _finite(drawn_S: np.ndarray) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in metrics.bounds(drawn_S)]


def _slices(values: Values, length_U: np.ndarray, count_U: np.ndarray, config: EvaluationConfig) -> dict[str, Any]:
    columns = [(name, filtered, metric) for name, filtered in values if name != ORACLE for metric in INTERVAL_METRICS]
    values_UM = np.stack([values[name, filtered][metric] for name, filtered, metric in columns], 1)
    return slices.table(slices.figures(values_UM, slices.dimensions(length_U, count_U), config.bootstrap_samples, config.seed), columns)


def _permuted_check(ranked: Rankings | None, target_U: np.ndarray, own_U: np.ndarray, config: EvaluationConfig) -> dict[str, Any]:
    """With someone else's history the model knows nothing of the target's user, so it may not beat popularity.

    `own_U` is the fused head's recall@10 of each user with the own history. Popularity is filtered by the same permuted histories.
    `falls_to_popularity`: the paired interval of the difference is not above 0. Empty where there is nobody to permute with.
    """
    if ranked is None:
        return {}
    fused_U, popular_U = (metrics.of_places(metrics.places(ranked[name, True], target_U), (10,))["recall@10"] for name in ("fused", "popularity"))
    difference = metrics.paired_difference(fused_U, popular_U, config.bootstrap_samples, config.seed)
    loss = metrics.paired_difference(own_U, fused_U, config.bootstrap_samples, config.seed)
    return {
        "users": len(target_U),
        "recall@10": float(fused_U.mean()),
        "popularity_recall@10": float(popular_U.mean()),
        "minus_popularity_recall@10": [difference.low, difference.high],
        "own_minus_permuted_recall@10": [loss.low, loss.high],
        "falls_to_popularity": difference.low <= 0.0,
    }


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


def _both(figures: Mapping[tuple[str, bool], dict[str, float]], name: str) -> dict[str, dict[str, float]]:
    return {word: figures[name, filtered] for word, filtered in (("filtered", True), ("unfiltered", False)) if (name, filtered) in figures}


def _alarms(headline: Mapping[str, Mapping[str, float]], n_items: int) -> list[str]:
    """What no healthy model does."""
    distinct = int(headline[MODEL]["distinct@10"])
    expected = min(100, n_items // 3)
    return [f"only {distinct} distinct items in all top-10 lists (fewer than {expected})"] if distinct < expected else []


def _protocol(
    work: Workload,
    history: HistoryConfig,
    item_ids: Sequence[str],
    config: EvaluationConfig,
    decoding: DecodingConfig,
    fusion: dict[str, Any],
    card: Mapping[str, Any],
    oracle_users: int,
) -> dict[str, Any]:
    """How these figures came about, in words and numbers."""
    split: Split = work.split
    seen = baselines.histories_before(split, work.rows_U, "test")
    repeats = sum(bool((items == target).any()) for items, target in zip(seen, work.target_U, strict=True))
    return {
        "split": SPLITS[history.split],
        "split_settings": history.model_dump(mode="json"),
        "tie_rule_events": "events of a user in the order of (timestamp, place in the source file)",
        "ranking": "the whole catalogue; dense head and baselines score every item, the generative head gives its beam, "
        "fused is the best of what both heads and memory propose, without_memory of what the heads do",
        "tie_rule_rankings": "higher score first, then lower item index (items in ascending order of id)",
        "filter_rule": "filtered: items of the user's history are removed before the top is taken, except the target",
        "users": len(split.histories),
        "users_evaluated": len(work.rows_U),
        "users_of_oracle": oracle_users,
        "catalogue": len(item_ids),
        "catalogue_hash": items_hash(item_ids),
        "train_events": int(split.train_lengths.sum()),
        "targets_seen_before": repeats,
        "top_k": config.top_k,
        "beam_width": decoding.beam_width,
        "decoding": decoding.model_dump(mode="json"),
        "fusion": fusion | {"chosen_on": "validation"},
        "knn_neighbours": card["knn_neighbours"],
        "baseline_settings": {name: {k: v for k, v in chosen.items() if k != "tried"} for name, chosen in card["chosen"].items()},
        "intervals": f"95%, percentile bootstrap over users, {config.bootstrap_samples} resamples, paired",
        "seed": config.seed,
    }


def items_hash(item_ids: Sequence[str]) -> str:
    """Digest of the item ids alone: two runs on the same catalogue may be compared, whatever codes their items have."""
    return hashlib.sha256("\n".join(item_ids).encode()).hexdigest()[:16]
