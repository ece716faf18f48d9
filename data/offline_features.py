"""Offline features: point-in-time joins by Ray Data, and their backfill by day into Parquet.

Every row asks for the features of an entity as of a moment and gets what the events strictly before that moment say (`ugt.feature_definitions`). Events
and requests meet in Ray Data's own shuffle, by a hash of the entity; a partition is one polars kernel, which takes its entities a few hundred
at a time, so no task holds a whole table. The facts of the items (genres, people) are broadcast once.

A backfill writes `<out>/<entity>_features/date=YYYY-MM-DD/part-00000.parquet` (`schema(entity)`, by entity): the features of everybody who had an event, as
of the end of that UTC day. A day's file carries the key of what it was made from; a day whose key is the same is skipped.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from data import event_log
from data.feature_store import item_facts
from ugt.artifacts import EVENTS, ITEMS, MANIFEST, content_hash, read_table
from ugt.feature_definitions import DAY, ENTITIES, FEATURES, TOTALS, Entity, schema
from ugt.feature_tables import as_of
from ugt.schema import UGTError

VERSION = 1  # raised when the same events give other values
KEY = b"ugt.features.key"
WORK = 500_000  # events times moments of the entities that a kernel takes at a time; a few hundred MB
# one row of the shuffle: an event, or (`row` not null) a request
MIXED = pa.schema(
    [
        ("part", pa.int32()),
        ("entity", pa.string()),
        ("timestamp", pa.int64()),
        ("row", pa.int64()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("value", pa.float64()),
    ]
)


def point_in_time(entity: Entity, requests: pa.Table, events: pa.Table, facts: pl.DataFrame, parts: int = 8) -> pa.Table:
    """`requests` (`entity` id, `timestamp` in Unix seconds, and whatever else, a label say) with a column per feature, in their order.

    `events` are EVENTS rows, in any order, each event once; `facts` as of `ugt.feature_definitions.facts_of`. An entity without earlier events has
    zeros, nulls and empty lists. Raises UGTError if a column is missing or null.
    """
    _check(entity, requests)
    rows = pa.array(range(requests.num_rows), pa.int64())
    asked = requests.select(["entity", "timestamp"]).append_column("row", rows)
    found = [pl.DataFrame(pl.from_arrow(batch)) for batch in _batches(entity, asked, events, facts, parts)]
    if not found:
        return pa.Table.from_batches([], schema=pa.schema([*requests.schema, *list(schema(entity))[2:]]))
    values = pl.concat(found).sort("row").drop("row", "entity", "timestamp").to_arrow(compat_level=pl.CompatLevel.oldest())
    names = [f.name for f in FEATURES[entity]]
    columns = [values[n].cast(schema(entity).field(n).type) for n in names]
    return pa.Table.from_arrays([*requests.columns, *columns], names=[*requests.column_names, *names])


def _check(entity: Entity, requests: pa.Table) -> None:
    for name in ("entity", "timestamp"):
        if name not in requests.column_names or requests[name].null_count:
            raise UGTError(f"a point-in-time join needs the column `{name}` in every row of its requests. Give it ({entity} ids, Unix seconds).")
    double = {f.name for f in FEATURES[entity]} & set(requests.column_names)
    if double:
        raise UGTError(f"the requests of a point-in-time join hold the columns {sorted(double)} already. Leave them out or rename them.")


def _batches(entity: Entity, asked: pa.Table, events: pa.Table, facts: pl.DataFrame, parts: int) -> Iterator[pa.Table]:
    """`row` and the features of every request, a partition at a time."""
    mixed = ray.data.from_arrow([_mixed(asked, entity, parts), _mixed(events, entity, parts)])
    kernel = {"entity": entity, "facts": ray.put(facts)}
    done = mixed.groupby("part", num_partitions=parts).map_groups(_join, fn_kwargs=kernel, batch_format="pyarrow")
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        if batch.num_rows:
            yield batch


def _mixed(rows: pa.Table, entity: Entity, parts: int) -> pa.Table:
    frame = pl.DataFrame(pl.from_arrow(rows))
    if "entity" not in frame.columns:
        frame = frame.with_columns(entity=pl.col(f"{entity}_id"))
    part = (pl.col("entity").hash(seed=0) % parts).cast(pl.Int32)
    dtypes = pl.DataFrame(pl.from_arrow(MIXED.empty_table())).schema
    columns = [(pl.col(n) if n in frame.columns else pl.lit(None)).cast(t).alias(n) for n, t in dtypes.items() if n != "part"]
    return frame.select(part.alias("part"), *columns).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(MIXED)


def _join(batch: pa.Table, entity: Entity, facts: Any) -> Iterator[pa.Table]:
    yield from join_kernel(pl.DataFrame(pl.from_arrow(batch)), entity, ray.get(facts))


def join_kernel(mixed: pl.DataFrame, entity: Entity, facts: pl.DataFrame) -> Iterator[pa.Table]:
    """The requests among MIXED rows with their features: `row`, then `schema(entity)`. Runs in Ray's workers and, in tests, without Ray."""
    requests = mixed.filter(pl.col("row").is_not_null()).select("row", "entity", "timestamp")
    events = mixed.filter(pl.col("row").is_null()).drop("row", "part").join(requests.select("entity").unique(), on="entity", how="semi")
    events = events.join(facts, on="item_id", how="left")
    asked = requests.group_by("entity").agg(moments=pl.len()).join(events.group_by("entity").len(), on="entity", how="left").sort("entity")
    group = ((asked["moments"] * (asked["len"].fill_null(0) + 1)).cast(pl.Int64).cum_sum() // WORK).alias("group")
    groups = asked.select("entity", group)
    for (number,), some in requests.join(groups, on="entity").partition_by("group", as_dict=True, include_key=False).items():
        chosen = events.join(groups.filter(pl.col("group") == number), on="entity", how="semi")
        values = as_of(entity, chosen, some)
        out = values.with_columns(row=some["row"]).select("row", *schema(entity).names).to_arrow(compat_level=pl.CompatLevel.oldest())
        yield out.cast(pa.schema([("row", pa.int64()), *schema(entity)]))


# --- backfill


def backfill(etl_dir: Path, log_dir: Path, out_dir: Path, first: date, last: date, parts: int = 8) -> dict[str, Any]:
    """Write the features of every user and item for each day from `first` to `last`, both included; days that are there already are skipped.

    The events are those of the ETL's tables and of the event log, each event id once. Raises UGTError if the range is empty or there is no event.
    """
    start = time.monotonic()
    if first > last:
        raise UGTError(f"--from {first} is later than --to {last}. Give the earlier day first.")
    if last >= datetime.now(UTC).date():
        raise UGTError(
            f"--to {last} has not ended yet (UTC), so its features would change. The last whole day is {datetime.now(UTC).date() - timedelta(days=1)}."
        )
    wanted = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    events, log_files = _events(Path(etl_dir), Path(log_dir), wanted[-1])
    figures: dict[str, Any] = {"days": len(wanted), "events": events.num_rows}
    facts = item_facts(Path(etl_dir))
    for entity in ENTITIES:
        key = content_hash([VERSION, repr((FEATURES[entity], TOTALS[entity])), _fingerprint(Path(etl_dir)), log_files])
        folder = Path(out_dir) / f"{entity}_features"
        missing = [day for day in wanted if _stored_key(folder / f"date={day}" / "part-00000.parquet") != key]
        rows = _write_days(entity, missing, events, facts, folder, key, parts) if missing else 0
        figures |= {f"{entity}_days_written": len(missing), f"{entity}_days_skipped": len(wanted) - len(missing), f"{entity}_rows": rows}
    return figures | {"seconds": round(time.monotonic() - start, 3)}


def _events(etl_dir: Path, log_dir: Path, last: date) -> tuple[pa.Table, list[str]]:
    """(the events up to the last day, names of the log's files they may come from)."""
    tables = [read_table(etl_dir / "events", EVENTS)]
    chosen = [day for day in event_log.days(log_dir) if day <= last.isoformat()]
    if chosen:
        logged, _ = event_log.events_of(log_dir, read_table(etl_dir / "items", ITEMS), chosen)
        tables.append(logged)
    rows = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).unique("event_id", keep="first", maintain_order=True)
    rows = rows.filter(pl.col("timestamp") < (last.toordinal() - date(1970, 1, 1).toordinal() + 1) * DAY)
    if rows.height == 0:
        raise UGTError(f"neither {etl_dir} nor {log_dir} holds an event up to {last}. Name days in which something happened.")
    names = [f"{day}/{part.name}" for day in chosen for part in event_log.sorted_parts(log_dir, day)]
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(EVENTS), names


def _fingerprint(etl_dir: Path) -> str:
    manifest = etl_dir / MANIFEST
    if not manifest.is_file():
        raise UGTError(f"{etl_dir} is no finished ETL (no {MANIFEST}). Run it again: ugt data etl")
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


def _stored_key(path: Path) -> str | None:
    try:
        return (pq.read_schema(path).metadata or {}).get(KEY, b"").decode() or None
    except (FileNotFoundError, pa.ArrowException):
        return None


def _write_days(entity: Entity, days: Sequence[date], events: pa.Table, facts: pl.DataFrame, folder: Path, key: str, parts: int) -> int:
    """One join for all days; each partition's rows are put aside by day, then every day is sorted, written beside and renamed. Rows written."""
    ends = pl.Series([(day - date(1970, 1, 1)).days * DAY + DAY for day in days])
    since = pl.DataFrame(pl.from_arrow(events)).group_by(entity=pl.col(f"{entity}_id")).agg(first=pl.col("timestamp").min())
    asked = since.join(pl.DataFrame({"timestamp": ends}), how="cross").filter(pl.col("first") < pl.col("timestamp")).drop("first").sort("entity", "timestamp")
    asked = asked.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    folder.mkdir(parents=True, exist_ok=True)
    names = {int(end): day for end, day in zip(ends, days, strict=True)}
    aside = {end: folder / f".{day}.{os.getpid()}.parquet" for end, day in names.items()}
    writers = {end: pq.ParquetWriter(path, schema(entity), compression="zstd") for end, path in aside.items()}
    written = 0
    try:
        for batch in _batches(entity, asked.to_arrow(compat_level=pl.CompatLevel.oldest()), events, facts, parts):
            frame = pl.DataFrame(pl.from_arrow(batch.drop_columns(["row"])))
            for (end,), rows in frame.partition_by("timestamp", as_dict=True).items():
                writers[int(end)].write_table(rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema(entity)))
        for end, writer in writers.items():
            writer.close()
            rows = pq.read_table(aside[end]).sort_by("entity").replace_schema_metadata({KEY: key.encode()})
            target = folder / f"date={names[end]}" / "part-00000.parquet"
            target.parent.mkdir(exist_ok=True)
            pq.write_table(rows, aside[end], compression="zstd")
            os.replace(aside[end], target)
            written += rows.num_rows
    finally:
        for end, writer in writers.items():
            writer.close()
            aside[end].unlink(missing_ok=True)
    return written
