"""The event log: the Redis stream drained to Parquet by day, compacted, and read as canonical events.

Layout: `<log>/date=YYYY-MM-DD/part-*.parquet` (EVENT_LOG; the UTC day of the event's own timestamp, so a late event goes to its own day) and
`<log>/quarantine/part-*.parquet` (QUARANTINE: stream entries that are no event, with the reason). Names that begin with `.` are unfinished.

At least once, counted once: an entry is acknowledged to the consumer group only after its file is on disk under its final name. A kill in between
leaves the entry pending, and the next drain writes it again; every reader and `compact` keep the first row of an event id. Both rows have the
same timestamp, hence the same day, so a day is all that need be looked at.

Who writes what: a drain only adds files with names of their own; whoever rewrites or removes files (compaction, retention, erasure) holds
`rewriting(log)` and removes only files it has read, after the file that replaces them is in place. So they need not wait for a drain, nor it for them,
and a reader that finds a file gone lists the day again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ugt.artifacts import EVENT_LOG, EVENTS, QUARANTINE
from ugt.schema import ACTIONS, UGTError
from ugt.stores.features import STREAM, event_of

FOLDER = "event_log"  # in UGT_HOME
GROUP, CONSUMER = "event_log", "drain"
BATCH = 10_000  # entries per file; of about 300 bytes
COMPACTED = "part-compacted-"
LATEST_TIMESTAMP = 4_102_444_800  # the year 2100: later ones are milliseconds by mistake
OWN = ("event_id", "user_id", "item_id", "action", "value", "timestamp", "received_at", "request_id")  # fields with a column of their own


# --- Redis to Parquet


def drain(redis_url: str, log_dir: Path, *, follow: bool = False, every: float = 5.0, tell: Callable[[str], None] | None = None) -> dict[str, int]:
    """Write what the stream holds beyond the last drain to the log; with `follow`, again every so many seconds until interrupted.

    Returns `read` entries = `written` + `quarantined` + `removed` (deleted from the stream after they had been handed out), and `files`.
    One drain at a time per log. Raises UGTError if another one runs, or if Redis does not answer.
    """
    import redis

    log_dir = Path(log_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    figures = dict.fromkeys(("read", "written", "quarantined", "removed", "files"), 0)
    _sweep(log_dir)
    try:
        with _alone(log_dir / ".drain.lock", wait=False), contextlib.closing(redis.Redis.from_url(redis_url, decode_responses=True)) as client:
            with contextlib.suppress(redis.exceptions.ResponseError):  # BUSYGROUP: it is there
                client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            while True:
                before = figures["read"]
                # first what a killed drain took and did not acknowledge, then what nobody took yet
                for start in ("0", ">"):
                    while entries := _entries(client, start):
                        for name, number in _store(entries, log_dir).items():
                            figures[name] += number
                        client.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
                if tell is not None and figures["read"] > before:
                    tell(f"{figures['read'] - before:,} events written to {log_dir}")
                if not follow:
                    return figures
                time.sleep(every)
    except redis.RedisError as error:
        raise UGTError(f"the event stream cannot be read: Redis does not answer ({error}). Nothing is lost: start it, then run it again.") from error
    except KeyboardInterrupt:
        return figures


def _sweep(log_dir: Path) -> None:
    """Remove unfinished files of writers that were killed: an hour old, so that nobody writes to them any more."""
    for stale in log_dir.glob("*/.part-*.parquet"):
        with contextlib.suppress(FileNotFoundError):
            if stale.stat().st_mtime < time.time() - 3600:
                stale.unlink()


def _entries(client: Any, start: str) -> list[tuple[str, dict[str, str] | None]]:
    found = client.xreadgroup(GROUP, CONSUMER, {STREAM: start}, count=BATCH)
    return list(found[0][1] if isinstance(found, list) else found[STREAM][0]) if found else []


def _store(entries: list[tuple[str, dict[str, str] | None]], log_dir: Path) -> dict[str, int]:
    """Write the entries into their days, durable when this returns."""
    days: dict[str, list[dict[str, Any]]] = defaultdict(list)
    bad: list[dict[str, Any]] = []
    for entry_id, fields in entries:
        if not fields:
            continue
        try:
            row = _row(entry_id, fields)
        except (KeyError, ValueError, OverflowError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
            bad.append({"table": "events", "file": STREAM, "row": _order(entry_id), "reason": reason, "raw": json.dumps(fields, ensure_ascii=False)})
        else:
            days[day_of(row["timestamp"])].append(row)
    for day, rows in days.items():
        write_part(pa.Table.from_pylist(rows, EVENT_LOG), log_dir / f"date={day}")
    if bad:
        write_part(pa.Table.from_pylist(bad, QUARANTINE), log_dir / "quarantine")
    written = sum(map(len, days.values()))
    figures = {"read": len(entries), "written": written, "quarantined": len(bad), "removed": len(entries) - written - len(bad)}
    return figures | {"files": len(days) + bool(bad)}


def _row(entry_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    event = event_of(fields)
    if not event.event_id or not event.user_id or not event.item_id:
        raise ValueError("event_id, user_id or item_id is empty")
    if not 0 <= event.timestamp <= LATEST_TIMESTAMP:
        raise ValueError(f"the timestamp {event.timestamp} is not in Unix seconds")
    # an entry without the time it came in got its id when it did
    received = int(fields["received_at"]) if "received_at" in fields else int(entry_id.split("-")[0]) // 1000
    rest = {name: text for name, text in fields.items() if name not in OWN}
    details = json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None
    return event.model_dump() | {"received_at": received, "request_id": fields.get("request_id"), "details": details, "order": _order(entry_id)}


def _order(entry_id: str) -> int:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds) * 1_000_000 + int(sequence)


def day_of(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d")


def write_part(table: pa.Table, folder: Path, prefix: str = "part-") -> Path:
    """One more file in a folder of the log, durable under its final name when this returns."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{prefix}{uuid.uuid4().hex}.parquet"
    aside = folder / f".{name}"
    try:
        with open(aside, "wb") as f:
            pq.write_table(table, f, compression="zstd")
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, folder / name)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UGTError(f"cannot write {folder / name} ({error.strerror}). Nothing is lost: mend that, then run it again.") from error
    for changed in (folder, folder.parent) if made else (folder,):
        _sync(changed)
    return folder / name


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def rewriting(log_dir: Path) -> Iterator[None]:
    """Held by whoever rewrites or removes files of the log (compaction, retention, erasure); waits for the others. Drains and readers need none."""
    with _alone(Path(log_dir) / ".rewrite.lock", wait=True):
        yield


@contextlib.contextmanager
def _alone(path: Path, wait: bool) -> Iterator[None]:
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UGTError(f"another `ugt data ingest --from events` writes to {path.parent}. One at a time: end it, or let it go on.") from error
        yield


# --- reading


def days(log_dir: Path) -> list[str]:
    """The days the log holds, ascending."""
    return sorted(p.name.removeprefix("date=") for p in Path(log_dir).glob("date=*") if any(p.glob("part-*.parquet")))


def read_day(log_dir: Path, day: str) -> pa.Table:
    """The events of one day (EVENT_LOG), each once, by (user, timestamp, order). O(rows of the day) memory."""
    return _once(_read(sorted_parts(log_dir, day), log_dir, day))


def sorted_parts(log_dir: Path, day: str) -> list[Path]:
    return sorted((Path(log_dir) / f"date={day}").glob("part-*.parquet"))


def _read(files: list[Path], log_dir: Path, day: str, tries: int = 20) -> pa.Table:
    for _ in range(tries):
        try:
            return pa.concat_tables([EVENT_LOG.empty_table(), *(pq.read_table(f, partitioning=None).select(EVENT_LOG.names).cast(EVENT_LOG) for f in files)])
        except FileNotFoundError:  # compacted since it was listed
            files = sorted_parts(log_dir, day)
        except (pa.ArrowException, KeyError) as error:
            raise UGTError(f"{log_dir}/date={day} holds a file that is no part of an event log ({error}). Move it away.") from error
    raise UGTError(f"{log_dir}/date={day} changes faster than it can be read. Run it again when no compaction or erasure runs.")


def _once(rows: pa.Table) -> pa.Table:
    frame = pl.DataFrame(pl.from_arrow(rows)).sort("event_id", "order").unique("event_id", keep="first", maintain_order=True)
    return frame.sort("user_id", "timestamp", "order").to_arrow(compat_level=pl.CompatLevel.oldest()).cast(EVENT_LOG)


def events_of(log_dir: Path, items: pa.Table, days_to_read: list[str] | None = None) -> tuple[pa.Table, dict[str, int]]:
    """The log as canonical events of a catalogue: EVENTS rows of the items in `items` (`item_id, item_index`), by (user, timestamp, order), and the balance.

    `in` = `out` + `filtered` (an item the catalogue does not have) + `duplicate` (an event id met before) + `quarantined` (rows of the log's
    quarantine, and rows whose action or ids no event may have). A day is read at a time; the result is held whole.
    """
    known = pl.DataFrame(pl.from_arrow(items.select(["item_id", "item_index"])))
    balance = dict.fromkeys(("in", "out", "filtered", "duplicate", "quarantined"), 0)
    found = [pl.DataFrame(pl.from_arrow(EVENTS.empty_table()))]
    for day in days(log_dir) if days_to_read is None else days_to_read:
        raw = _read(sorted_parts(log_dir, day), Path(log_dir), day)
        once = pl.DataFrame(pl.from_arrow(_once(raw)))
        sound = once.filter(
            pl.col("action").is_in(list(ACTIONS))
            & (pl.col("user_id").str.len_bytes() > 0)
            & (pl.col("item_id").str.len_bytes() > 0)
            & pl.col("timestamp").is_between(0, LATEST_TIMESTAMP)
        )
        kept = sound.join(known, on="item_id", how="inner", maintain_order="left")
        parts = {"out": kept.height, "filtered": sound.height - kept.height, "duplicate": raw.num_rows - once.height, "quarantined": once.height - sound.height}
        for name, number in (parts | {"in": raw.num_rows}).items():
            balance[name] += number
        found.append(kept.select(pl.col("value").cast(pl.Float32) if n == "value" else pl.col(n) for n in EVENTS.names))
    if days_to_read is None:
        aside = sum(pq.read_metadata(f).num_rows for f in (Path(log_dir) / "quarantine").glob("part-*.parquet"))
        balance["in"] += aside
        balance["quarantined"] += aside
    rows = pl.concat(found).sort("user_id", "timestamp", "order", "event_id")
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest()).select(EVENTS.names).cast(EVENTS), balance


# --- compaction


def compact(log_dir: Path, until: date | None = None) -> dict[str, int]:
    """Each day into one file, each event once, by (user, timestamp, order); days after `until` are left alone. A day that is so already is not touched.

    Safe while a drain runs and idempotent; a kill leaves a day with rows twice at worst, which readers and the next run see through. Days that are
    removed by a retention while it waits are left out. Returns days, days rewritten, files before and after, rows and duplicates removed.
    """
    log_dir = Path(log_dir)
    figures = dict.fromkeys(("days", "rewritten", "files_before", "files_after", "rows", "duplicates"), 0)
    if not log_dir.is_dir():
        raise UGTError(f"there is no event log at {log_dir}. Fill it first: ugt data ingest --from events")
    with rewriting(log_dir):
        for day in days(log_dir):
            if until is not None and day > until.isoformat():
                continue
            folder = log_dir / f"date={day}"
            parts = sorted_parts(log_dir, day)
            if not (len(parts) == 1 and parts[0].name.startswith(COMPACTED)):
                before = _read(parts, log_dir, day)
                after = _once(before)
                write_part(after, folder, COMPACTED)
                for part in parts:
                    part.unlink()
                _sync(folder)
                figures["rewritten"] += 1
                figures["duplicates"] += before.num_rows - after.num_rows
            left = sorted_parts(log_dir, day)
            figures["days"] += 1
            figures["files_before"] += len(parts)
            figures["files_after"] += len(left)
            figures["rows"] += sum(pq.read_metadata(part).num_rows for part in left)
    return figures
