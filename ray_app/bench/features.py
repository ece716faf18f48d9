"""Time of the online feature read: what a recommend request reads of a user with 100 events, beyond a bare round trip to the same Redis.

An embedded Redis in a temporary home holds the measured users and ten thousand others, loaded as `ugt data materialize` loads them, and an exposure list of 20
items each. The three reads take turns through one client, so that whatever else the machine does falls on all of them: GET of a small key; `user_state`
(what /recommend reads: profile, the last 200 events, seen and shown items); the same with all feature values of the user.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ray_app.report import host
from ugt.feature_definitions import Facts
from ugt.feature_tables import facts_of, totals_of
from ugt.schema import ACTIONS, User
from ugt.stores import embedded
from ugt.stores.feature_load import FeatureLoad
from ugt.stores.features import ALL, OnlineFeatures, PastEvent

ITEMS, GENRES, PEOPLE = 5000, 24, 3000
BAR_MS = 2.0
OTHER_EVENTS = 20  # of each user who is not measured
HISTORY = 200  # as /recommend asks for
WARM_UP = 200
SMALL = "bench:small"


def run(reads: int = 5000, users: int = 200, others: int = 10_000, events: int = 100, seed: int = 0) -> dict[str, Any]:
    """`bare`, `state`, `state_and_features`: p50 and p99 in ms; `p99_beyond_bare_ms` and its bar. Every measured user has `events` events."""
    with tempfile.TemporaryDirectory(prefix="ugt-bench-") as folder:
        home = Path(folder)
        try:
            return asyncio.run(_run(embedded.ensure_redis(home), reads, users, others, events, seed))
        finally:
            embedded.stop(home)


async def _run(url: str, reads: int, users: int, others: int, events: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    features = OnlineFeatures(url)
    try:
        start = time.perf_counter()
        await _load(features, np.repeat([events, OTHER_EVENTS], [users, others]), rng)
        loaded = time.perf_counter() - start
        for u in range(users):
            await features.record_exposure(f"u{u}", [f"i{i}" for i in rng.choice(ITEMS, 20, replace=False)], time.time())
        await features.redis.set(SMALL, "1")
        _check(await features.user_state_and_features("u0", time.time(), HISTORY), events)
        ms_R3 = np.array([await _turn(features, f"u{u}") for u in rng.integers(users, size=reads + WARM_UP)])[WARM_UP:]
    finally:
        await features.close()
    names = ("bare", "state", "state_and_features")
    # p5 is what a read takes when nothing else wants the processor: on a busy machine the p99 of all three is its scheduler's
    p5, p50, p99 = np.percentile(ms_R3, [5, 50, 99], axis=0)
    report: dict[str, Any] = {name: {"p5_ms": round(p5[k], 4), "p50_ms": round(p50[k], 4), "p99_ms": round(p99[k], 4)} for k, name in enumerate(names)}
    return report | {
        "p99_beyond_bare_ms": round(p99[1] - p99[0], 4),
        "p99_beyond_bare_with_features_ms": round(p99[2] - p99[0], 4),
        "bar_ms": BAR_MS,
        "reads": reads,
        "users": users,
        "others": others,
        "events_per_user": events,
        "events_per_other": OTHER_EVENTS,
        "load_seconds": round(loaded, 1),
        "seed": seed,
        "host": host() | {"load": os.getloadavg()[0]},
    }


def _check(read: tuple[Any, dict[str, Any]], events: int) -> None:
    """What is timed must be there: a read of nothing would be fast."""
    state, values = read
    if len(state.history) != min(events, HISTORY) or sum(values[f"count_{a}"] for a in ACTIONS) != events or len(state.exposed) != 20:
        raise RuntimeError(f"the measured user was not loaded: {len(state.history)} events, {len(state.exposed)} shown items")


async def _turn(features: OnlineFeatures, user_id: str) -> tuple[float, float, float]:
    now = time.time()
    t0 = time.perf_counter()
    await features.redis.get(SMALL)
    t1 = time.perf_counter()
    await features.user_state(user_id, now, HISTORY)
    t2 = time.perf_counter()
    await features.user_state_and_features(user_id, now, HISTORY)
    t3 = time.perf_counter()
    return (t1 - t0) * 1000, (t2 - t1) * 1000, (t3 - t2) * 1000


async def _load(features: OnlineFeatures, lengths_U: np.ndarray, rng: np.random.Generator) -> None:
    facts = _facts(rng)
    item_E = np.minimum(rng.zipf(1.3, lengths_U.sum()) - 1, ITEMS - 1)
    frame = pl.DataFrame(
        {
            "entity": np.repeat([f"u{u}" for u in range(len(lengths_U))], lengths_U),
            "item_id": pl.Series([f"i{i}" for i in range(ITEMS)]).gather(item_E),
            "action": pl.Series(ACTIONS).gather(rng.integers(len(ACTIONS), size=len(item_E))),
            "value": rng.integers(1, 11, len(item_E)) / 2,
            "timestamp": int(time.time()) - rng.integers(0, 365 * 86400, len(item_E)),
        }
    ).join(facts, on="item_id", how="left", maintain_order="left")
    load = await FeatureLoad.begin(features)
    await load.users(_histories(frame, lengths_U))
    await load.totals("user", totals_of("user", frame).iter_rows())
    await load.facts((i, Facts(tuple(g), tuple(p))) for i, g, p in facts.iter_rows())
    await load.popularity(ALL, {f"i{i}": int(n) for i, n in enumerate(np.bincount(item_E, minlength=ITEMS))})
    await load.switch("bench")


def _facts(rng: np.random.Generator) -> pl.DataFrame:
    genres = [[f"Genre {g}" for g in rng.choice(GENRES, 3, replace=False)] for _ in range(ITEMS)]
    ids = [f"i{i}" for i in range(ITEMS)]
    people = pl.DataFrame(
        {"item_id": np.repeat(ids, 3), "ordering": np.tile([1, 2, 3], ITEMS), "person_id": [f"nm{p}" for p in rng.integers(PEOPLE, size=3 * ITEMS)]}
    )
    return facts_of(pl.DataFrame({"item_id": ids, "genres": genres}), people)


def _histories(frame: pl.DataFrame, lengths_U: np.ndarray) -> Iterator[tuple[User, list[PastEvent]]]:
    rows = list(frame.select("item_id", "action", "value", "timestamp").iter_rows())
    for u, end in enumerate(np.cumsum(lengths_U).tolist()):
        yield User(user_id=f"u{u}", age=30, gender="F"), [PastEvent(*row) for row in sorted(rows[end - lengths_U[u] : end], key=lambda row: row[3])]
