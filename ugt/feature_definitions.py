"""The features of users and items: one definition, computed event by event for Redis here and over tables in `ugt.feature_tables`.

A feature is read from *totals*: integers by (name, key) to which every event adds, whatever the order events come in (`TOTALS`). So a late event
needs no repair, online increments and an offline sum agree to the bit, and the value at a moment t is the total over the events strictly before t.
`increments` is the online half, `feature_tables.as_of` the offline half; `values_of` turns totals into values for the first, the latter for the second, and
tests/data/test_feature_store.py holds both against a plain loop.

Choices: ratings are added in thousandths, because integers add up the same in any order; hours and days are UTC, so that no server's clock zone
matters; a window is whole days, the day of the moment included, so that Redis keeps one number a day. Dislikes say nothing about taste.
An event without a time (timestamp 0) has no hour and no day, and comes before every moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
