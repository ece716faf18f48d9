"""The features of users and items: one definition, computed over tables by polars and event by event for Redis.

A feature is read from *totals*: integers by (name, key) to which every event adds, whatever the order events come in (`TOTALS`). So a late event
needs no repair, online increments and an offline sum agree to the bit, and the value at a moment t is the total over the events strictly before t.
`increments` is the online half, `as_of` the offline half; `values_of` turns totals into values for the first, `_values` for the second, and
tests/data/test_feature_store.py holds both against a plain loop.

Choices: ratings are added in thousandths, because integers add up the same in any order; hours and days are UTC, so that no server's clock zone
matters; a window is whole days, the day of the moment included, so that Redis keeps one number a day. Dislikes say nothing about taste.
An event without a time (timestamp 0) has no hour and no day, and comes before every moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import polars as pl
import pyarrow as pa

from ugt.schema import ACTIONS, Event

Entity = Literal["user", "item"]
By = Literal["action", "genre", "person", "hour", "day", "item", "rating"]

ENTITIES: tuple[Entity, ...] = ("user", "item")
DAY = 86400
PEOPLE_PER_ITEM = 3  # the first names of the credits; a whole cast would make a user's totals ten times as large
RATED = ("rate", "like", "dislike", "favorite")  # whose value is a rating; of `play` it is something else
TASTE = tuple(a for a in ACTIONS if a != "dislike")
THOUSANDTHS = 1000


class Facts(NamedTuple):
    """What a feature needs to know of an item beside its events."""

    genres: tuple[str, ...] = ()
    people: tuple[str, ...] = ()  # person ids, in order of the credits


@dataclass(frozen=True)
class Total:
    """One number per key of `by`; an event of one of `actions` adds 1 to each of its keys (`rating`: its value to `sum` and 1 to `n`)."""

    name: str
    by: By
    actions: tuple[str, ...] = ACTIONS


@dataclass(frozen=True)
class Feature:
    """`how` reads the total `of`: `key` the number of one key, `distinct` how many keys there are, `top` the three largest with their shares,
    `mean` sum / n, `window` what was added in the last `days` days, `latest` the newest timestamp (null: none)."""

    name: str
    entity: Entity
    dtype: pa.DataType
    how: Literal["key", "distinct", "top", "mean", "window", "latest"]
    of: str = ""
    key: str = ""
    days: int = 0


SHARES = pa.list_(pa.struct([("key", pa.string()), ("share", pa.float64())]))
TOP = 3
LATEST = "latest"

TOTALS: dict[Entity, tuple[Total, ...]] = {
    "user": (
        Total("count", "action"),
        Total("rating", "rating", RATED),
        Total("item", "item"),
        Total("day", "day"),
        Total("hour", "hour"),
        Total("genre", "genre", TASTE),
        Total("person", "person", TASTE),
    ),
    "item": (Total("count", "action"), Total("rating", "rating", RATED), Total("day", "day", TASTE)),
}


def _shared(entity: Entity) -> tuple[Feature, ...]:
    counts = (Feature(f"count_{action}", entity, pa.int64(), "key", "count", action) for action in ACTIONS)
    return (*counts, Feature("mean_rating", entity, pa.float64(), "mean", "rating"), Feature("last_active", entity, pa.int64(), "latest"))


FEATURES: dict[Entity, tuple[Feature, ...]] = {
    "user": (
        *_shared("user"),
        Feature("distinct_items", "user", pa.int64(), "distinct", "item"),
        Feature("days_active", "user", pa.int64(), "distinct", "day"),
        Feature("active_hours", "user", SHARES, "top", "hour"),
        Feature("preferred_genres", "user", SHARES, "top", "genre"),
        Feature("preferred_people", "user", SHARES, "top", "person"),
    ),
    "item": (*_shared("item"), Feature("popularity_30d", "item", pa.int64(), "window", "day", days=30)),
}


def schema(entity: Entity) -> pa.Schema:
    """Of a table of feature values: `entity` (the id), `timestamp` (the moment, Unix seconds), then every feature."""
    return pa.schema([("entity", pa.string()), ("timestamp", pa.int64()), *((f.name, f.dtype) for f in FEATURES[entity])])


# --- event by event (Redis)


def increments(entity: Entity, event: Event, facts: Facts) -> Iterator[tuple[str, str, int]]:
    """(total, key, number to add) of one event."""
    for total in TOTALS[entity]:
        if event.action not in total.actions:
            continue
        if total.by == "rating":
            if event.value is not None and event.value == event.value:
                yield total.name, "sum", _thousandths(event.value)
                yield total.name, "n", 1
        else:
            for key in _keys(total.by, event, facts):
                yield total.name, key, 1


def _keys(by: By, event: Event, facts: Facts) -> tuple[str, ...]:
    if by == "genre":
        return facts.genres
    if by == "person":
        return facts.people
    if by in ("hour", "day"):
        if event.timestamp <= 0:
            return ()
        return (f"{event.timestamp // 3600 % 24:02d}" if by == "hour" else str(event.timestamp // DAY),)
    return (event.action if by == "action" else event.item_id,)


def _thousandths(value: float) -> int:
    return int((value * THOUSANDTHS + 0.5) // 1)  # not round(): the table half must do the very same


def values_of(entity: Entity, totals: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int], latest: int | None, now: int) -> dict[str, Any]:
    """Feature values from the totals over everything that happened. `sizes` are numbers of keys of totals that are kept as sets elsewhere."""
    row: dict[str, Any] = {}
    for f in FEATURES[entity]:
        of = totals.get(f.of, {})
        if f.how == "key":
            row[f.name] = of.get(f.key, 0)
        elif f.how == "distinct":
            row[f.name] = sizes.get(f.of, len(of))
        elif f.how == "top":
            whole = sum(of.values())
            row[f.name] = [{"key": k, "share": n / whole} for k, n in sorted(of.items(), key=lambda kn: (-kn[1], kn[0]))[:TOP]]
        elif f.how == "mean":
            row[f.name] = of["sum"] / (of["n"] * THOUSANDTHS) if of.get("n") else None
        elif f.how == "window":
            today = now // DAY
            row[f.name] = sum(n for day, n in of.items() if today - f.days < int(day) <= today)
        else:
            row[f.name] = latest
    return row


# --- tables (polars)


def facts_of(items: pl.DataFrame, credits: pl.DataFrame) -> pl.DataFrame:
    """`item_id, genre, person` (lists): the facts of every item, from ITEMS and CREDITS rows. A person of two roles counts once."""
    people = (
        credits.sort("item_id", "ordering", "person_id")
        .unique(["item_id", "person_id"], keep="first", maintain_order=True)
        .group_by("item_id", maintain_order=True)
        .agg(person=pl.col("person_id").head(PEOPLE_PER_ITEM))
    )
    return (
        items.select("item_id", genre=pl.col("genres").list.drop_nulls().list.unique(maintain_order=True))
        .join(people, on="item_id", how="left")
        .with_columns(pl.col("genre", "person").fill_null(pl.lit([], dtype=pl.List(pl.String))))
    )


def contributions(entity: Entity, events: pl.DataFrame) -> pl.DataFrame:
    """`entity, timestamp, name, key, add`: what each event adds to each total.

    `events` has `entity, item_id, action, value, timestamp, genre, person` (the last two lists, from `facts_of`).
    """
    parts = []
    at = events["timestamp"] > 0
    for total in TOTALS[entity]:
        rows = events if total.actions == ACTIONS else events.filter(pl.col("action").is_in(list(total.actions)))
        key, add = pl.col("action"), pl.lit(1, pl.Int64)
        if total.by in ("genre", "person"):
            rows = rows.explode(total.by, empty_as_null=False).filter(pl.col(total.by).is_not_null())
            key = pl.col(total.by)
        elif total.by == "item":
            key = pl.col("item_id")
        elif total.by in ("hour", "day"):
            rows = events.filter(at) if rows is events else rows.filter(pl.col("timestamp") > 0)
            hour = (pl.col("timestamp") // 3600 % 24).cast(pl.String).str.zfill(2)
            key = hour if total.by == "hour" else (pl.col("timestamp") // DAY).cast(pl.String)
        if total.by == "rating":
            value = pl.col("value").cast(pl.Float64)
            rows = rows.filter(value.is_not_null() & value.is_not_nan())
            whole = (value * THOUSANDTHS + 0.5).floor().cast(pl.Int64)
            parts.append(_contribution(rows, total.name, pl.lit("sum"), whole))
            key = pl.lit("n")
        parts.append(_contribution(rows, total.name, key, add))
    return pl.concat(parts)


def _contribution(rows: pl.DataFrame, name: str, key: pl.Expr, add: pl.Expr) -> pl.DataFrame:
    return rows.select("entity", "timestamp", name=pl.lit(name), key=key, add=add)


def totals_of(entity: Entity, events: pl.DataFrame) -> pl.DataFrame:
    """`entity, name, key, add`: the totals over all events, and LATEST with the newest timestamp; entities in ascending order."""
    latest = events.filter(pl.col("timestamp") > 0).group_by("entity").agg(add=pl.col("timestamp").max())
    rows = contributions(entity, events).group_by("entity", "name", "key").agg(pl.col("add").sum())
    return pl.concat([rows, latest.select("entity", name=pl.lit(LATEST), key=pl.lit(""), add="add")]).sort("entity", "name", "key")


def as_of(entity: Entity, events: pl.DataFrame, requests: pl.DataFrame) -> pl.DataFrame:
    """Feature values of each request (`entity, timestamp`), in their order, over the events strictly before its timestamp: `schema(entity)` rows.

    One sort and one running sum: every request stands as a zero among the events of its entity, once for each key the entity ever has, before the
    events of its own second. O((E + R) K log) for an entity with E events, R moments asked for and K keys.
    """
    asked = requests.select("entity", "timestamp").unique().sort("entity", "timestamp").with_row_index("moment")
    # a key of a `distinct` total matters when it is first met, a `window` needs only the sum over its keys: one key each instead of hundreds
    all_of = contributions(entity, events.join(asked.select("entity").unique(), on="entity", how="semi"))
    merged = {f.of for f in FEATURES[entity] if f.how in ("distinct", "window")}
    firsts = {f.of for f in FEATURES[entity] if f.how == "distinct"}
    first = all_of.filter(pl.col("name").is_in(list(firsts))).group_by("entity", "name", "key").agg(pl.col("timestamp").min(), add=pl.lit(1, pl.Int64))
    windowed = all_of.filter(pl.col("name").is_in(list(merged - firsts)))
    added = pl.concat([all_of.filter(~pl.col("name").is_in(list(merged))), *(p.select(all_of.columns).with_columns(key=pl.lit("")) for p in (first, windowed))])
    # from here on a key is a number: what is sorted and summed is the long part, requests times keys
    keys = added.select("entity", "name", "key").unique().with_row_index("k")
    numbered = added.join(keys, on=["entity", "name", "key"]).select("k", "timestamp", "add")
    sums = _sums_before(numbered, asked.join(keys, on="entity")).join(keys.select("k", "name", "key"), on="k")
    for f in (f for f in FEATURES[entity] if f.how == "window"):
        # what had been added before the window's first day is taken off again
        start = (pl.col("timestamp") // DAY - f.days + 1) * DAY
        of = keys.filter(pl.col("name") == f.of)
        before = _sums_before(numbered, asked.with_columns(timestamp=start).join(of, on="entity")).with_columns(total=-pl.col("total"))
        both = pl.concat([sums.filter(pl.col("name") == f.of).select(before.columns), before])
        window = both.group_by("moment", "k").agg(pl.col("total").sum()).with_columns(name=pl.lit(f.name), key=pl.lit(""))
        sums = pl.concat([sums, window.select(sums.columns)])
    latest = events.filter(pl.col("timestamp") > 0).select("entity", "timestamp", latest=pl.col("timestamp")).sort("timestamp")
    newest = asked.sort("timestamp").join_asof(latest, on="timestamp", by="entity", strategy="backward", allow_exact_matches=False, check_sortedness=False)
    values = _values(entity, newest, sums)
    return requests.select("entity", "timestamp").join(values, on=["entity", "timestamp"], how="left", maintain_order="left")


def _sums_before(added: pl.DataFrame, marks: pl.DataFrame) -> pl.DataFrame:
    """`moment, k, total`: the sum of `add` (of `k, timestamp, add`) strictly before each mark (`moment, k, timestamp`), where it is not 0."""
    rows = [marks.select("k", "timestamp", "moment", add=pl.lit(0, pl.Int64)), added.select("k", "timestamp", pl.lit(None, pl.UInt32).alias("moment"), "add")]
    # nulls last: a mark stands before the events of its second
    summed = pl.concat(rows).sort("k", "timestamp", "moment", nulls_last=True).with_columns(total=pl.col("add").cum_sum().over("k"))
    return summed.filter(pl.col("moment").is_not_null() & (pl.col("total") != 0)).select("moment", "k", "total")


def _values(entity: Entity, asked: pl.DataFrame, sums: pl.DataFrame) -> pl.DataFrame:
    """The features of each moment from its totals; a moment without any has zeros, nulls and empty lists."""
    name, key, total = pl.col("name"), pl.col("key"), pl.col("total")
    scalars: list[pl.Expr] = []
    means: list[pl.Expr] = []
    tops: list[pl.DataFrame] = []
    for f in FEATURES[entity]:
        if f.how == "key":
            scalars.append(total.filter((name == f.of) & (key == f.key)).sum().alias(f.name))
        elif f.how in ("distinct", "window"):
            scalars.append(total.filter(name == (f.of if f.how == "distinct" else f.name)).sum().alias(f.name))
        elif f.how == "mean":
            scalars += [total.filter((name == f.of) & (key == k)).sum().alias(f"{f.name} {k}") for k in ("sum", "n")]
            # always column by column: polars divides by a single number by multiplying with its inverse, which is not the same number
            means.append(pl.when(pl.col(f"{f.name} n") > 0).then(pl.col(f"{f.name} sum") / (pl.col(f"{f.name} n") * THOUSANDTHS)).alias(f.name))
        elif f.how == "top":
            ordered = sums.filter((name == f.of) & (total > 0)).sort("moment", total, "key", descending=[False, True, False])
            shares = ordered.with_columns(share=total / total.sum().over("moment"))
            tops.append(shares.group_by("moment", maintain_order=True).agg(pl.struct("key", "share").head(TOP).alias(f.name)))
    rows = asked.join(sums.group_by("moment").agg(scalars), on="moment", how="left").with_columns(means)
    for top in tops:
        rows = rows.join(top, on="moment", how="left")
    empty = pl.DataFrame(schema(entity).empty_table()).schema
    return rows.select(
        "entity",
        "timestamp",
        *(_filled(f, empty[f.name]) for f in FEATURES[entity]),
    )


def _filled(f: Feature, dtype: Any) -> pl.Expr:
    column = pl.col("latest" if f.how == "latest" else f.name).cast(dtype).alias(f.name)
    if f.how == "top":
        return column.fill_null(pl.lit([], dtype=dtype))
    return column.fill_null(0) if f.how in ("key", "distinct", "window") else column
