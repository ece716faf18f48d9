"""Two runs compared on the same users: per-user values of both, the paired bootstrap interval of their difference, and a plain sentence.

Choices: a run is known by the place each user's held-out item has in its lists (`per_user.parquet`), from which every figure follows. Another system's
lists (a predictions file) are judged by the same targets. Runs of other targets or of another catalogue are refused: their figures say nothing of each other.

Shapes: U users of a run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ugt import metrics
from ugt.artifacts import PER_USER, PREDICTIONS, read_table
from ugt.schema import UGTError

METRICS = ("recall@10", "ndcg@10", "recall@50")
MAIN = ("fused", True, "ndcg@10")  # what the sentence speaks of


@dataclass(frozen=True)
class Run:
    """Places of the held-out items: a table of user_id, target_id, head, filtered, place (null: not in the list)."""

    name: str
    places: pl.DataFrame
    catalogue_hash: str | None  # None: unknown, and checked otherwise
    top_k: int


def load_run(folder: Path, name: str) -> Run:
    """The evaluation in a folder (`per_user.parquet`, `metrics.json`). Raises UGTError naming what is missing."""
    folder = Path(folder)
    try:
        protocol = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["protocol"]
        found = pl.from_arrow(read_table(folder / "per_user.parquet", PER_USER))
    except (OSError, ValueError, KeyError) as error:
        raise UGTError(f"{folder} is not a whole evaluation ({type(error).__name__}: {error}). Give the folder that `ugt evaluate` wrote.") from error
    assert isinstance(found, pl.DataFrame)
    return Run(name, found.select("user_id", "target_id", "head", "filtered", "place"), protocol["catalogue_hash"], int(protocol["top_k"]))


def load_predictions(path: Path, own: Run, item_ids: Sequence[str]) -> Run:
    """The lists of a predictions file (PREDICTIONS; of any system), judged by the targets of `own`.

    Raises UGTError if the file is none, if it names items that are not in the catalogue or an item twice in one list, if it has none of the users, or lists
    of fewer than ten items.
    """
    try:
        lists = pl.from_arrow(read_table(Path(path), PREDICTIONS))
    except (OSError, ValueError, KeyError) as error:
        raise UGTError(f"{path} holds no predictions ({error}). Expected columns: {', '.join(PREDICTIONS.names)}.") from error
    assert isinstance(lists, pl.DataFrame)
    named = lists["item_ids"].explode().drop_nulls().unique()
    strange = named.filter(~named.is_in(pl.Series(item_ids, dtype=pl.String).implode()))
    if len(strange):
        raise UGTError(
            f"{path} is of another catalogue: {len(strange):,} of its {len(named):,} items are not in this one, for example '{strange.sort()[0]}'. "
            "Compare runs on the same source and catalogue."
        )
    repeats = lists.filter(pl.col("item_ids").list.n_unique() < pl.col("item_ids").list.len())
    if repeats.height:
        raise UGTError(f"{path} names an item twice in the list of user '{repeats['user_id'][0]}'. A ranking holds each item once.")
    targets = own.places.select("user_id", "target_id").unique()
    judged = lists.join(targets, on="user_id", how="inner")
    if judged.height == 0:
        raise UGTError(f"{path} has none of the users of this evaluation (its first is '{lists['user_id'][0] if lists.height else ''}'). Check the source.")
    depth = int(lists["item_ids"].list.len().max() or 0)  # type: ignore[arg-type]
    if depth < 10:
        raise UGTError(f"{path} has lists of at most {depth} items, and the shallowest comparison is of the first 10. Give at least ten items a user.")
    judged = judged.with_row_index("row")
    found = judged.select("row", "target_id", "item_ids").explode("item_ids").with_columns(place=pl.int_range(1, pl.len() + 1).over("row"))
    found = found.filter(pl.col("item_ids") == pl.col("target_id")).select("row", pl.col("place").cast(pl.Int32))
    places = judged.join(found, on="row", how="left").select("user_id", "target_id", "head", "filtered", "place")
    return Run(Path(path).name, places, None, depth)


def compare(this: Run, other: Run, samples: int, seed: int) -> dict[str, Any]:
    """`rows` (ranking, rule, metric, this, other, difference, interval, verdict) for every ranking both have, `sentence`, `users`, `against`.

    A run with one head that isn't ours is compared with our fused head. Raises UGTError for another catalogue, another target of a shared user, or if
    fewer than two users or no ranking is shared.
    """
    if other.catalogue_hash is not None and other.catalogue_hash != this.catalogue_hash:
        raise UGTError(
            f"{other.name} was evaluated on another catalogue ({other.catalogue_hash}, this one is {this.catalogue_hash}). Compare runs on the same items."
        )
    users = _shared_users(this, other)
    pairs = sorted(set(this.places.select("head", "filtered").unique().rows()) & set(other.places.select("head", "filtered").unique().rows()))
    names = {pair: pair for pair in pairs}
    heads = other.places["head"].unique().to_list()
    if not pairs and len(heads) == 1:
        names = {("fused", rule): (heads[0], rule) for rule in sorted(other.places["filtered"].unique())}
    if not names:
        raise UGTError(f"{other.name} has no ranking that this run has: it holds {', '.join(sorted(heads))}. Name one of them fused.")
    rows = []
    for own_name, their_name in names.items():
        own_U, their_U = _places(this, own_name, users), _places(other, their_name, users)
        known = (own_U >= 0) & (their_U >= 0)  # a head may have been asked for some users only
        if known.sum() < 2:
            continue
        a, b = (metrics.of_places(p[known]) for p in (own_U, their_U))
        for metric in METRICS:
            if int(metric.split("@")[1]) > min(this.top_k, other.top_k):
                continue
            interval = metrics.paired_difference(a[metric], b[metric], samples, seed)
            verdict = "better" if interval.low > 0 else "worse" if interval.high < 0 else "no difference shown"
            rows.append(
                {"ranking": own_name[0], "rule": "filtered" if own_name[1] else "unfiltered", "metric": metric, "users": int(known.sum())}
                | {"this": float(a[metric].mean()), "other": float(b[metric].mean())}
                | {"difference": interval.value, "interval": [interval.low, interval.high], "verdict": verdict}
            )
    if not rows:
        raise UGTError(f"{other.name} ranks fewer than two of the users of this run under the same rule. Evaluate both on the same users.")
    left = {"this": this.places["user_id"].n_unique() - len(users), "other": other.places["user_id"].n_unique() - len(users)}
    return {"against": other.name, "users": len(users), "users_left_out": left, "sentence": _sentence(rows, other.name, left), "rows": rows}


def _shared_users(this: Run, other: Run) -> pl.DataFrame:
    """user_id of the users of both. Raises UGTError if one of them has two targets, or hardly any is shared."""
    both = this.places.select("user_id", "target_id").unique().join(other.places.select("user_id", other_id="target_id").unique(), on="user_id", how="inner")
    differ = both.filter(pl.col("target_id") != pl.col("other_id"))
    if differ.height:
        user, own, their = differ.sort("user_id").row(0)
        raise UGTError(
            f"{other.name} was judged by other targets: {differ.height:,} of {both.height:,} shared users have another held-out item, as has user '{user}' "
            f"('{own}' here, '{their}' there). Evaluate both with the same histories and the same split."
        )
    if both.height < 2:
        raise UGTError(f"{other.name} and this run share {both.height} users, so there is nothing to compare. Check that both are of the same source.")
    return both.select("user_id").sort("user_id")


def _places(run: Run, name: tuple[str, bool], users: pl.DataFrame) -> np.ndarray:
    """Place of each user's target in one ranking, 0 where it isn't in the list, -1 where the ranking has no list for the user: int64 [U]."""
    rows = run.places.filter((pl.col("head") == name[0]) & (pl.col("filtered") == name[1])).select("user_id", pl.col("place").fill_null(0))
    return users.join(rows, on="user_id", how="left", maintain_order="left")["place"].fill_null(-1).to_numpy().astype(np.int64)


def _sentence(rows: list[dict[str, Any]], other: str, left: dict[str, int]) -> str:
    row = next((r for r in rows if (r["ranking"], r["rule"] == "filtered", r["metric"]) == MAIN), rows[0])
    low, high = row["interval"]
    said = {"better": "This run is better", "worse": "This run is worse", "no difference shown": "No difference is shown"}[row["verdict"]]
    text = (
        f"{said}: {row['metric']} of the {row['ranking']} ranking, {row['rule']}, is {row['this']:.4f} against {row['other']:.4f} of {other} on the same "
        f"{row['users']:,} users, a difference of {row['difference']:+.4f} (95% interval {low:+.4f} to {high:+.4f}, paired bootstrap over users)."
    )
    if any(left.values()):
        text += f" Left out: {left['this']:,} users of this run and {left['other']:,} of the other, whom only one of them ranked."
    return text
