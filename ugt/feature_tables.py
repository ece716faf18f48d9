"""The features of `ugt.feature_definitions` over tables, by polars: totals of events, and values as of any moment.

Apart from the definitions, because a serving replica adds event by event and needs no data frames.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from ugt.feature_definitions import DAY, FEATURES, LATEST, PEOPLE_PER_ITEM, THOUSANDTHS, TOP, TOTALS, Entity, Feature, schema
from ugt.schema import ACTIONS


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
