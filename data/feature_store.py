"""Offline tables to the online stores: histories and popularity to Redis, vectors to Milvus, items, users and the version to SQL.

A load is skipped when every store says that it already holds this data. Redis gets a generation beside the one that is read and then one switch, so a
live server never sees an empty history (`ugt.stores.feature_load`). It is not atomic across stores: SQL records the version last, so a load that is
killed is done again. Events accepted online since are applied on top: they are in the stream, not in the tables; those that an ETL took from the event
log are in both and are not applied twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ugt import histories as histories_module
from ugt.artifacts import CREDITS, ITEMS, MANIFEST, USERS, content_hash, read_table
from ugt.feature_definitions import DAY, FEATURES, LATEST, Facts
from ugt.feature_tables import facts_of, totals_of
from ugt.histories import Histories
from ugt.runtime import ITEM_TABLE, VECTORS
from ugt.schema import ACTIONS, Item, UGTError, User
from ugt.settings import StoresConfig
from ugt.stores import embedded
from ugt.stores.feature_load import FeatureLoad
from ugt.stores.features import ALL, OnlineFeatures, PastEvent, segment_of
from ugt.stores.records import Records
from ugt.stores.vectors import VectorStore, dense_space

VERSION = 2  # raised when what is written changes
USERS_AT_ONCE = 20_000  # whose totals are made together: a few hundred MB at a hundred events each


def materialize(
    histories_dir: Path,
    etl_dir: Path,
    stores: StoresConfig,
    home: Path,
    *,
    name: str,
    version: str,
    version_dir: Path,
    spaces: Mapping[str, Path],
) -> dict[str, Any]:
    """Fill the online stores for one model version; returns what is there, with `skipped` 1 if it was there already.

    `version_dir` holds the dense head's `item_vectors.npy` and the semantic IDs; `spaces` maps the name of a vector space to its file [N, D].
    Row i of each is item_index i.
    Empty addresses in `stores` mean the embedded servers of `home`, which are started and left running.
    Raises UGTError if a table, a file or a store is missing.
    """
    start = time.monotonic()
    files = {dense_space(version): Path(version_dir) / VECTORS, **{space: Path(p) for space, p in spaces.items()}}
    for path in files.values():
        if not path.is_file():
            raise UGTError(f"no vectors at {path}. Run the step that makes them, or `ugt demo` for all of them.")
    resolved = embedded.resolve(stores, home)
    records, vectors = Records(resolved.sql_url), VectorStore(resolved.milvus_uri)
    try:
        items_table = read_table(Path(etl_dir) / "items", ITEMS).sort_by("item_index")
        key = content_hash(
            [VERSION, version, _fingerprint(Path(histories_dir)), _fingerprint(Path(etl_dir)), {s: _fingerprint(p) for s, p in sorted(files.items())}]
        )
        recorded = records.version(name, version)
        counts_fit = all(vectors.count(space) == items_table.num_rows for space in files)
        if counts_fit and recorded is not None and recorded.data_key == key and asyncio.run(_marker(resolved.redis_url)) == key:
            return {**recorded.figures, "skipped": 1, "seconds": round(time.monotonic() - start, 3)}

        items = [Item(**{k: v for k, v in row.items() if k in Item.model_fields}) for row in _filled(items_table.to_pylist())]
        users = {row["user_id"]: User(**row) for row in read_table(Path(etl_dir) / "users", USERS).to_pylist()}
        item_ids = [i.item_id for i in items]
        codes_N3 = _codes(Path(version_dir), item_ids)
        histories = histories_module.load(Path(histories_dir))
        replayed = asyncio.run(_load_redis(resolved, key, histories, users, item_ids, item_facts(Path(etl_dir)), Path(etl_dir) / "events"))
        for space in vectors.spaces():
            # a dense space is one version's and goes with its catalogue; the others are the loaded version's, which may have been made without one
            if space not in files and (not space.startswith("dense_") or vectors.count(space) != len(items)):
                vectors.drop(space)
        for space, path in files.items():
            vectors.replace(space, item_ids, np.load(path), codes_N3)
        records.replace_catalogue(items, users.values(), dict(zip(item_ids, codes_N3.tolist(), strict=True)))
        figures = {"items": len(items), "users": len(users), "events": len(histories.items), "replayed": replayed, "spaces": len(files)}
        records.put_version(name, version, key, figures)
        return {**figures, "skipped": 0, "seconds": round(time.monotonic() - start, 3)}
    finally:
        vectors.close()
        records.close()


def _codes(version_dir: Path, item_ids: list[str]) -> np.ndarray:
    """The semantic IDs of a version, int32 [N, 3], row i of item_index i."""
    path = version_dir / ITEM_TABLE
    if not path.is_file():
        raise UGTError(f"no {ITEM_TABLE} in {version_dir}: the version has no semantic IDs. Export it again: ugt export onnx")
    table = pq.read_table(path, columns=["item_id", "l1", "l2", "l3"])
    if table["item_id"].to_pylist() != item_ids:
        raise UGTError(f"{path} names {table.num_rows:,} items, and they are not the {len(item_ids):,} of the tables. Export it again: ugt export onnx")
    return np.stack([table[level].to_numpy() for level in ("l1", "l2", "l3")], axis=1)


def _filled(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {
            **row,
            "genres": row["genres"] or [],
            "countries": row["countries"] or [],
            "title": row["title"] or row["item_id"],
            "item_type": row["item_type"] or "movie",
        }


async def _marker(url: str) -> str | None:
    features = OnlineFeatures(url)
    try:
        return await features.materialized()
    finally:
        await features.close()


async def _load_redis(
    stores: StoresConfig, key: str, histories: Histories, users: Mapping[str, User], item_ids: list[str], facts: pl.DataFrame, events_dir: Path
) -> int:
    features = OnlineFeatures(stores.redis_url, timeout_s=60, ttl_days=stores.online_ttl_days)
    try:
        load = await FeatureLoad.begin(features)
        await load.users(_user_rows(histories, users, item_ids))
        of_items = []
        for events in _event_frames(histories, item_ids, facts):
            await load.totals("user", totals_of("user", events).iter_rows())
            of_items.append(totals_of("item", events.with_columns(entity="item_id")))
        await load.totals("item", _merged(of_items).iter_rows())
        known = facts.filter((pl.col("genre").list.len() > 0) | (pl.col("person").list.len() > 0))
        await load.facts((item_id, Facts(tuple(genres), tuple(people))) for item_id, genres, people in known.iter_rows())
        for segment, counts in _popularity(histories, users, item_ids).items():
            await load.popularity(segment, counts)
        return await load.switch(key, await _held(features, events_dir))
    finally:
        await features.close()


async def _held(features: OnlineFeatures, events_dir: Path) -> set[str]:
    """Ids of the stream's events that the tables hold already: an ETL may have read them from the event log."""
    if not events_dir.is_dir():
        return set()
    streamed = [event_id async for event_id in features.event_ids()]
    found = pl.scan_parquet(events_dir / "*.parquet").select("event_id").filter(pl.col("event_id").is_in(streamed)).collect(engine="streaming")
    return set(found["event_id"].to_list())


def item_facts(etl_dir: Path) -> pl.DataFrame:
    """`item_id, genre, person` of every item of an ETL's tables. A catalogue without credits has items without people."""
    items = pl.DataFrame(pl.from_arrow(read_table(etl_dir / "items", ITEMS).select(["item_id", "genres"])))
    credits = read_table(etl_dir / "credits", CREDITS) if (etl_dir / "credits").is_dir() else CREDITS.empty_table()
    return facts_of(items, pl.DataFrame(pl.from_arrow(credits)))


def _event_frames(h: Histories, item_ids: list[str], facts: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The events of some users at a time, as `ugt.feature_definitions` reads them."""
    ids = pl.Series(item_ids, dtype=pl.String)
    names = pl.Series(("view", *ACTIONS))  # action 0 is "unknown to the vocabulary", see `_user_rows`
    for first in range(0, len(h), USERS_AT_ONCE):
        last = min(first + USERS_AT_ONCE, len(h))
        cut = slice(int(h.offsets[first]), int(h.offsets[last]))
        users = pl.Series(h.user_ids[first:last], dtype=pl.String)
        frame = pl.DataFrame(
            {
                "entity": users.gather(np.repeat(np.arange(last - first), h.lengths[first:last])),
                "item_id": ids.gather(h.items[cut]),
                "action": names.gather(h.actions[cut]),
                "value": h.values[cut],
                "timestamp": h.timestamps[cut],
            }
        )
        yield frame.join(facts, on="item_id", how="left")


def _merged(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Totals of items from those of several groups of users; days that no window reaches any more are left out."""
    if not parts:
        return pl.DataFrame(schema={"entity": pl.String, "name": pl.String, "key": pl.String, "add": pl.Int64})
    reach = max(f.days for f in FEATURES["item"])
    rows = pl.concat(parts).filter((pl.col("name") != "day") | (pl.col("key").cast(pl.Int64, strict=False) > time.time() // DAY - reach))
    total = pl.when(pl.col("name").first() == LATEST).then(pl.col("add").max()).otherwise(pl.col("add").sum())
    return rows.group_by("entity", "name", "key").agg(total).sort("entity", "name", "key")


def _user_rows(h: Histories, users: Mapping[str, User], item_ids: list[str]) -> Iterator[tuple[User, list[PastEvent]]]:
    for u, user_id in enumerate(h.user_ids):
        cut = h.row(u)
        rows = zip(h.items[cut].tolist(), h.actions[cut].tolist(), h.values[cut].tolist(), h.timestamps[cut].tolist(), strict=True)
        # action 0 is "unknown to the vocabulary"; `view` is the weakest claim about an event that did happen
        events = [PastEvent(item_ids[i], ACTIONS[a - 1] if a else "view", None if v != v else v, t) for i, a, v, t in rows]
        yield users.get(user_id) or User(user_id=user_id), events
    with_events = set(h.user_ids)
    for user in users.values():
        if user.user_id not in with_events:
            yield user, []


def _popularity(h: Histories, users: Mapping[str, User], item_ids: list[str]) -> dict[str, dict[str, int]]:
    """Events per item: in `all` for every item of the catalogue, in a segment for the items it touched. Dislikes do not count."""
    liked = h.actions != ACTIONS.index("dislike") + 1
    everywhere = np.bincount(h.items[liked], minlength=len(item_ids))
    by_segment: dict[str, Counter[int]] = defaultdict(Counter)
    for u, user_id in enumerate(h.user_ids):
        segment = segment_of(users.get(user_id))
        if segment != ALL:
            cut = h.row(u)
            by_segment[segment].update(h.items[cut][liked[cut]].tolist())
    named = {segment: {item_ids[i]: n for i, n in counts.items()} for segment, counts in by_segment.items()}
    return {ALL: dict(zip(item_ids, everywhere.tolist(), strict=True)), **named}


def _fingerprint(path: Path) -> str:
    """What a folder or file holds: its manifest, else its bytes."""
    manifest = path / MANIFEST
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()
