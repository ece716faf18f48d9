"""Online features in Redis: user histories, exposure, popularity by segment, and the event stream.

Keys (all under `ugt:`):
  user:<id>            hash    profile (gender, age, occupation) and counters (`count:<action>`, `last_active`)
  history:<id>         list    `timestamp|action|value|item_id`, in the order they came, the last HISTORY_LIMIT events
  seen:<id>            set     every item the user ever had an event with
  exposed:<id>         zset    item_id by the time it was shown; forgotten after the exposure window
  popular:<segment>    zset    item_id by number of events; `popular:all` holds every item of the catalogue, so it also says which items exist
  item:<id>            hash    counters by action
  events               stream  every accepted event, in order; `data/` drains it
  materialized         string  key of the data that was loaded last; absent while a load is under way
The kind comes before the id, so that no id, whatever it holds, can name another user's key.

An event is one MULTI: the stream entry and everything the next request reads become visible together, and, with `appendfsync always`, on disk
together before the answer. Nothing on this path is cached, so there is nothing to go stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ugt.schema import ACTIONS, Event, UGTError, User

HISTORY_LIMIT = 1000  # events kept for the model, whose window is far shorter; `seen` keeps every item
PREFIX = "ugt:"
STREAM = PREFIX + "events"
MATERIALIZED = PREFIX + "materialized"
USER_KINDS = ("user", "history", "seen", "exposed")  # keys named by a user id: what an erasure takes away (`ugt.stores.erasure`)
ALL = "all"


@dataclass(frozen=True)
class PastEvent:
    item_id: str
    action: str
    value: float | None
    timestamp: int  # Unix seconds, 0 where the source has none


@dataclass(frozen=True)
class UserState:
    """What one request needs to know of a user, read in one round trip."""

    user_id: str
    profile: User | None  # None: never heard of
    history: list[PastEvent] = field(default_factory=list)  # oldest first
    seen: set[str] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)


def segment_of(user: User | None) -> str:
    """Popularity segment of a profile: gender and decade of age where known, else everybody."""
    if user is None or (user.gender is None and user.age is None):
        return ALL
    age = "?" if user.age is None else f"{user.age // 10 * 10}s"
    return f"{user.gender or '?'}/{age}"


class OnlineFeatures:
    """The Redis client of the system. One instance belongs to one event loop."""

    def __init__(self, url: str, exposure_hours: float = 24.0, timeout_s: float = 2.0):
        import redis.asyncio

        try:
            self.redis: Any = redis.asyncio.Redis.from_url(url, decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as error:
            raise UGTError(f"stores.redis_url is not a Redis address: {error}. Example: redis://:password@host:6379/0") from error
        self.exposure_seconds = exposure_hours * 3600

    async def close(self) -> None:
        await self.redis.aclose()

    async def ping(self) -> None:
        """Raises redis.RedisError if the server does not answer."""
        await self.redis.ping()

    # --- reads of a request

    async def user_state(self, user_id: str, now: float, history_length: int) -> UserState:
        """Profile, last `history_length` events, all seen items, items shown within the exposure window."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.hmget(_key("user", user_id), "known", "gender", "age", "occupation")
        pipe.lrange(_key("history", user_id), -history_length, -1)
        pipe.smembers(_key("seen", user_id))
        pipe.zrangebyscore(_key("exposed", user_id), now - self.exposure_seconds, "+inf")
        (known, gender, age, occupation), history, seen, exposed = await pipe.execute()
        profile = User(user_id=user_id, gender=gender, age=int(age) if age is not None else None, occupation=occupation) if known else None
        # by time, ties as they came: the order the same events have in the tables (an event may arrive late and say when it happened)
        events = sorted((_unpack(text) for text in history), key=lambda event: event.timestamp)
        return UserState(user_id, profile, events, set(seen), set(exposed))

    async def popular(self, segment: str, start: int, count: int) -> list[tuple[str, float]]:
        """(item_id, number of events), most popular first; ties in reverse order of item_id (Redis' own rule, stable)."""
        return await self.redis.zrevrange(_key("popular", segment), start, start + count - 1, withscores=True)

    async def has_item(self, item_id: str) -> bool:
        return await self.redis.zscore(_key("popular", ALL), item_id) is not None

    async def seen_by(self, user_ids: Sequence[str]) -> list[set[str]]:
        """The seen items of many users, in their order."""
        pipe = self.redis.pipeline(transaction=False)
        for user_id in user_ids:
            pipe.smembers(_key("seen", user_id))
        return [set(s) for s in await pipe.execute()]

    # --- writes of a request

    async def record_exposure(self, user_id: str, item_ids: Sequence[str], now: float) -> None:
        """Remember what was shown, so that the next request within the window does not repeat it."""
        if not item_ids:
            return
        key = _key("exposed", user_id)
        pipe = self.redis.pipeline(transaction=True)
        pipe.zadd(key, dict.fromkeys(item_ids, now))
        pipe.zremrangebyscore(key, "-inf", now - self.exposure_seconds)
        pipe.expire(key, int(self.exposure_seconds) + 1)
        await pipe.execute()

    async def append(self, event: Event, details: dict[str, str]) -> None:
        """One accepted event: stream entry, history, counters, popularity, in one transaction.

        `details` are further string fields of the stream entry (request_id, position, ...). On return the event is visible to every reader,
        and durable where the server runs with `appendfsync always` (the embedded one does).
        """
        pipe = self.redis.pipeline(transaction=True)
        entry = {"event_id": event.event_id, "user_id": event.user_id, "item_id": event.item_id, "action": event.action, "timestamp": event.timestamp}
        if event.value is not None:
            entry["value"] = repr(event.value)
        pipe.xadd(STREAM, {**entry, **details})
        _apply(pipe, event)
        await pipe.execute()

    # --- loading (data/feature_store.py)

    async def materialized(self) -> str | None:
        return await self.redis.get(MATERIALIZED)

    async def begin_load(self) -> None:
        """Forget everything but the event stream and the exposures. A load that is killed leaves no marker and is done again."""
        await self.redis.delete(MATERIALIZED)
        doomed: list[str] = []
        async for key in self.redis.scan_iter(match=PREFIX + "*", count=5000):
            if key != STREAM and not key.startswith(PREFIX + "exposed:"):
                doomed.append(key)
            if len(doomed) >= 5000:
                await self.redis.unlink(*doomed)
                doomed = []
        if doomed:
            await self.redis.unlink(*doomed)

    async def load_users(self, users: Iterable[tuple[User, list[PastEvent]]], batch: int = 200) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for user, history in users:
            counts: dict[str, int] = {}
            for event in history:
                counts[event.action] = counts.get(event.action, 0) + 1
            fields: dict[str, Any] = {"known": 1, **{k: v for k in ("gender", "age", "occupation") if (v := getattr(user, k)) is not None}}
            fields |= {f"count:{a}": n for a, n in counts.items()}
            if history:
                fields["last_active"] = max(e.timestamp for e in history)
                pipe.rpush(_key("history", user.user_id), *[_pack(e) for e in history[-HISTORY_LIMIT:]])
                pipe.sadd(_key("seen", user.user_id), *{e.item_id for e in history})
            pipe.hset(_key("user", user.user_id), mapping=fields)
            if len(pipe) >= 3 * batch:
                await pipe.execute()
        await pipe.execute()

    async def load_popularity(self, segment: str, counts: dict[str, int], batch: int = 5000) -> None:
        """Number of events by item. The segment `all` must hold every item of the catalogue, with 0 where nobody touched it."""
        items = list(counts.items())
        for start in range(0, len(items), batch):
            await self.redis.zadd(_key("popular", segment), dict(items[start : start + batch]))

    async def replay(self) -> int:
        """Apply the event stream to what was loaded; returns the number of events applied. Events of items that are gone stay in the stream only."""
        applied = 0
        async for event in self.events():
            if await self.has_item(event.item_id):
                pipe = self.redis.pipeline(transaction=True)
                _apply(pipe, event)
                await pipe.execute()
                applied += 1
        return applied

    async def finish_load(self, data_key: str) -> None:
        await self.redis.set(MATERIALIZED, data_key)

    async def events(self, batch: int = 1000) -> AsyncIterator[Event]:
        """The event stream from its beginning."""
        last = "-"
        while True:
            entries = await self.redis.xrange(STREAM, min=last, count=batch)
            for entry_id, f in entries:
                yield Event(
                    event_id=f["event_id"],
                    user_id=f["user_id"],
                    item_id=f["item_id"],
                    action=f["action"],
                    value=float(f["value"]) if "value" in f else None,
                    timestamp=int(f["timestamp"]),
                )
                last = "(" + entry_id
            if len(entries) < batch:
                return
            await asyncio.sleep(0)


def _apply(pipe: Any, event: Event) -> None:
    """The effect of one event on everything a request reads."""
    history, user = _key("history", event.user_id), _key("user", event.user_id)
    pipe.rpush(history, _pack(PastEvent(event.item_id, event.action, event.value, event.timestamp)))
    pipe.ltrim(history, -HISTORY_LIMIT, -1)
    pipe.sadd(_key("seen", event.user_id), event.item_id)
    pipe.hset(user, mapping={"known": 1, "last_active": event.timestamp})
    pipe.hincrby(user, f"count:{event.action}", 1)
    pipe.hincrby(_key("item", event.item_id), event.action, 1)
    if event.action != "dislike":
        pipe.zincrby(_key("popular", ALL), 1, event.item_id)


def _key(kind: str, name: str) -> str:
    return f"{PREFIX}{kind}:{name}"


def _pack(event: PastEvent) -> str:
    return f"{event.timestamp}|{event.action}|{'' if event.value is None else repr(event.value)}|{event.item_id}"


def _unpack(text: str) -> PastEvent:
    timestamp, action, value, item_id = text.split("|", 3)
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r} in a stored history")
    return PastEvent(item_id, action, float(value) if value else None, int(timestamp))
