"""Online features in Redis: user histories, feature totals, exposure, popularity by segment, and the event stream.

Keys (all under `ugt:`; `<g>` is a generation, a number):
  generation              string  the generation that readers see and events go to; one SET of it is the switch to newly loaded data
  loading, generations    string  the generation being loaded, if any; the last number given out
  paused                  string  there while a load replays the last few events before its switch; events wait for it, a second at most
  events                  stream  every accepted event, in order; `data/event_log.py` drains it
  exposed:<id>            zset    item_id by the time it was shown; forgotten after the exposure window
  <g>:user:<id>           hash    profile (gender, age, occupation) and `known`
  <g>:history:<id>        list    `timestamp|action|value|item_id`, in the order they came, the last HISTORY_LIMIT events
  <g>:seen:<id>           set     every item the user ever had an event with
  <g>:totals:user:<id>    hash    `name:key` to number: the totals of `ugt.feature_definitions`, and `latest`; likewise totals:item:<id>
  <g>:facts:<id>          string  JSON of an item's genres and people, where it has any
  <g>:popular:<segment>   zset    item_id by number of events; `popular:all` holds every item of the catalogue, so it also says which items exist
  <g>:materialized        string  key of the data that was loaded
The kind comes before the id, so that no id, whatever it holds, can name another user's key.

Every read and every event is one run of `_SCRIPT`: Redis executes a list of commands in the generation of that moment, all or nothing seen by others.
A reader can therefore never see a half-loaded or half-deleted generation. An event's stream entry and all that the next request reads become
visible together, and, with `appendfsync always`, are on disk together before the answer. Nothing on this path is cached, so nothing goes stale.
A user's keys live `ttl_days` after the last event or load; the event log and the tables keep everything, and the next load brings it back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ugt.feature_definitions import LATEST, Entity, Facts, increments, values_of
from ugt.schema import ACTIONS, Event, UGTError, User

HISTORY_LIMIT = 1000  # events kept for the model, whose window is far shorter; `seen` keeps every item
PREFIX = "ugt:"
STREAM = PREFIX + "events"
GENERATION = PREFIX + "generation"
USER_KINDS = ("user", "history", "seen", "totals:user", "exposed")  # keys named by a user id: what an erasure takes away (`ugt.stores.erasure`)
ALL = "all"
SEEN_TOTAL = "item"  # the total that the set `seen` already is
PROFILE = ("known", "gender", "age", "occupation")

# ARGV[1]: JSON list of [command, key, argument, ...]; a key that begins with '*' stands in the generation. ARGV[2]: the generation expected, or '';
# ARGV[3]: the generation to work in instead of the current one, or ''.
# HMAX sets a hash field to the larger number. Answers [generation, result, ...], or only the generation, with nothing done, if it is not the expected one
# or a load is about to switch to another. The answer is one JSON text: a client parses that far faster than hundreds of Redis replies (absent values
# come as false, empty lists as {}).
_SCRIPT = """
local g = ARGV[3] ~= '' and ARGV[3] or redis.call('GET', 'ugt:generation') or '0'
local out = {g}
if ARGV[2] ~= '' and (ARGV[2] ~= g or redis.call('EXISTS', 'ugt:paused') == 1) then return cjson.encode(out) end
for i, c in ipairs(cjson.decode(ARGV[1])) do
  if string.sub(c[2], 1, 1) == '*' then c[2] = 'ugt:' .. g .. ':' .. string.sub(c[2], 2) end
  if c[1] == 'HMAX' then
    local old = redis.call('HGET', c[2], c[3])
    if not old or tonumber(old) < tonumber(c[4]) then redis.call('HSET', c[2], c[3], c[4]) end
    out[i + 1] = 0
  else
    out[i + 1] = redis.call(unpack(c))
  end
end
return cjson.encode(out)
"""
_SHA = hashlib.sha1(_SCRIPT.encode()).hexdigest()
Command = tuple[str, ...]


class MovedError(Exception):
    """The generation changed between a read and the write that follows from it, or is about to."""


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

    def __init__(self, url: str, exposure_hours: float = 24.0, timeout_s: float = 2.0, ttl_days: float = 365.0):
        import redis.asyncio

        try:
            self.redis: Any = redis.asyncio.Redis.from_url(url, decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as error:
            raise UGTError(f"stores.redis_url is not a Redis address: {error}. Example: redis://:password@host:6379/0") from error
        self.exposure_seconds = exposure_hours * 3600
        self.ttl_seconds = max(1, int(ttl_days * 86400))

    async def close(self) -> None:
        await self.redis.aclose()

    async def ping(self) -> None:
        """Raises redis.RedisError if the server does not answer."""
        await self.redis.ping()

    async def execute(self, commands: Sequence[Command], expected: str = "", within: str = "") -> list[Any]:
        """Run the commands as one in the current generation, or `within` another; answers that generation and their results.

        Raises MovedError, with nothing done, if a generation is expected and another one is current or about to be.
        """
        import redis

        arguments = (0, json.dumps(commands, separators=(",", ":")), expected, within)
        try:
            out = await self.redis.evalsha(_SHA, *arguments)
        except redis.exceptions.NoScriptError:  # a server that was started since; nothing was executed
            out = await self.redis.eval(_SCRIPT, *arguments)
        found = json.loads(out)
        if len(found) != len(commands) + 1:
            raise MovedError(found[0])
        return [None if x is False else [] if x == {} else x for x in found]

    # --- reads of a request

    async def user_state(self, user_id: str, now: float, history_length: int) -> UserState:
        """Profile, last `history_length` events, all seen items, items shown within the exposure window."""
        _, *found = await self.execute(self._state_commands(user_id, now, history_length))
        return self._state(user_id, found)

    async def user_features(self, user_id: str, now: int) -> dict[str, Any]:
        """The values of `ugt.feature_definitions` for a user over everything that happened; zeros and nulls for one never heard of."""
        _, *found = await self.execute(_feature_commands("user", user_id))
        return _values("user", found, now)

    async def item_features(self, item_id: str, now: int) -> dict[str, Any]:
        """The same for an item."""
        _, *found = await self.execute(_feature_commands("item", item_id))
        return _values("item", found, now)

    async def user_state_and_features(self, user_id: str, now: float, history_length: int) -> tuple[UserState, dict[str, Any]]:
        """Both, of one moment, in one round trip."""
        state = self._state_commands(user_id, now, history_length)
        _, *found = await self.execute([*state, *_feature_commands("user", user_id)])
        return self._state(user_id, found[: len(state)]), _values("user", found[len(state) :], int(now))

    def _state_commands(self, user_id: str, now: float, history_length: int) -> list[Command]:
        return [
            ("HMGET", f"*user:{user_id}", *PROFILE),
            ("LRANGE", f"*history:{user_id}", str(-history_length), "-1"),
            ("SMEMBERS", f"*seen:{user_id}"),
            ("ZRANGEBYSCORE", f"{PREFIX}exposed:{user_id}", repr(now - self.exposure_seconds), "+inf"),
        ]

    def _state(self, user_id: str, found: list[Any]) -> UserState:
        (known, gender, age, occupation), history, seen, exposed = found
        profile = User(user_id=user_id, gender=gender or None, age=int(age) if age else None, occupation=occupation or None) if known else None
        # by time, ties as they came: the order the same events have in the tables (an event may arrive late and say when it happened)
        events = sorted((unpack(text) for text in history), key=lambda event: event.timestamp)
        return UserState(user_id, profile, events, set(seen), set(exposed))

    async def popular(self, segment: str, start: int, count: int) -> list[tuple[str, float]]:
        """(item_id, number of events), most popular first; ties in reverse order of item_id (Redis' own rule, stable)."""
        _, flat = await self.execute([("ZREVRANGE", f"*popular:{segment}", str(start), str(start + count - 1), "WITHSCORES")])
        return [(item_id, float(score)) for item_id, score in zip(flat[::2], flat[1::2], strict=True)]

    async def has_item(self, item_id: str) -> bool:
        _, score = await self.execute([("ZSCORE", f"*popular:{ALL}", item_id)])
        return score is not None

    async def seen_by(self, user_ids: Sequence[str]) -> list[set[str]]:
        """The seen items of many users, in their order."""
        _, *found = await self.execute([("SMEMBERS", f"*seen:{user_id}") for user_id in user_ids])
        return [set(items) for items in found]

    async def materialized(self) -> str | None:
        """The key of the data that readers see; None before the first load."""
        _, key = await self.execute([("GET", "*materialized")])
        return key

    # --- writes of a request

    async def record_exposure(self, user_id: str, item_ids: Sequence[str], now: float) -> None:
        """Remember what was shown, so that the next request within the window does not repeat it."""
        if not item_ids:
            return
        key = f"{PREFIX}exposed:{user_id}"
        pipe = self.redis.pipeline(transaction=True)
        pipe.zadd(key, dict.fromkeys(item_ids, now))
        pipe.zremrangebyscore(key, "-inf", now - self.exposure_seconds)
        pipe.expire(key, int(self.exposure_seconds) + 1)
        await pipe.execute()

    async def append(self, event: Event, details: dict[str, str]) -> None:
        """One accepted event: stream entry, history, totals, popularity, all at once.

        `details` are further string fields of the stream entry (request_id, position, ...). On return the event is visible to every reader,
        and durable where the server runs with `appendfsync always` (the embedded one does).
        """
        entry = {"event_id": event.event_id, "user_id": event.user_id, "item_id": event.item_id, "action": event.action, "timestamp": str(event.timestamp)}
        if event.value is not None:
            entry["value"] = repr(event.value)
        stream: Command = ("XADD", STREAM, "*", *(text for pair in {**entry, **details}.items() for text in pair))
        while True:
            generation, facts = await self.execute([("GET", f"*facts:{event.item_id}")])
            try:
                await self.execute([stream, *effects(event, unpack_facts(facts), self.ttl_seconds)], generation)
                return
            except MovedError:  # new data is switched to just now, which may know other facts of the item; nothing was written yet
                await asyncio.sleep(0.002)

    async def events(self) -> AsyncIterator[Event]:
        """The event stream from its beginning."""
        async for fields in self._stream():
            yield event_of(fields)

    async def event_ids(self) -> AsyncIterator[str]:
        """The ids of the stream's events, in order."""
        async for fields in self._stream():
            if "event_id" in fields:
                yield fields["event_id"]

    async def _stream(self, batch: int = 1000) -> AsyncIterator[dict[str, str]]:
        last = "-"
        while True:
            entries = await self.redis.xrange(STREAM, min=last, count=batch)
            for entry_id, fields in entries:
                yield fields
                last = "(" + entry_id
            if len(entries) < batch:
                return
            await asyncio.sleep(0)


def event_of(fields: Mapping[str, str]) -> Event:
    """The event of a stream entry. Raises KeyError or ValueError (pydantic's among them) for an entry that is none."""
    return Event(
        event_id=fields["event_id"],
        user_id=fields["user_id"],
        item_id=fields["item_id"],
        action=fields["action"],  # type: ignore[arg-type]  # checked by pydantic
        value=float(fields["value"]) if "value" in fields else None,
        timestamp=int(fields["timestamp"]),
    )


def effects(event: Event, facts: Facts, ttl_seconds: int) -> list[Command]:
    """What one event changes of all that a request reads."""
    user, item = event.user_id, event.item_id
    of_user, of_item = f"*totals:user:{user}", f"*totals:item:{item}"
    commands: list[Command] = [
        ("RPUSH", f"*history:{user}", pack(PastEvent(item, event.action, event.value, event.timestamp))),
        ("LTRIM", f"*history:{user}", str(-HISTORY_LIMIT), "-1"),
        ("SADD", f"*seen:{user}", item),
        ("HSET", f"*user:{user}", "known", "1"),
    ]
    for key, entity in ((of_user, "user"), (of_item, "item")):
        commands += [("HINCRBY", key, f"{n}:{k}", str(add)) for n, k, add in increments(entity, event, facts) if n != SEEN_TOTAL]  # type: ignore[arg-type]
        if event.timestamp > 0:
            commands.append(("HMAX", key, LATEST, str(event.timestamp)))
    if event.action != "dislike":
        commands.append(("ZINCRBY", f"*popular:{ALL}", "1", item))
    return [*commands, *(("EXPIRE", key, str(ttl_seconds)) for key in (f"*history:{user}", f"*seen:{user}", f"*user:{user}", of_user))]


def _feature_commands(entity: Entity, name: str) -> list[Command]:
    return [("HGETALL", f"*totals:{entity}:{name}"), ("SCARD", f"*seen:{name}") if entity == "user" else ("HLEN", f"*totals:{entity}:{name}")]


def _values(entity: Entity, found: list[Any], now: int) -> dict[str, Any]:
    flat, size = found
    totals: dict[str, dict[str, int]] = {}
    latest = None
    for field_name, number in zip(flat[::2], flat[1::2], strict=True):
        name, _, key = field_name.partition(":")
        if name == LATEST:
            latest = int(number)
        else:
            totals.setdefault(name, {})[key] = int(number)
    return values_of(entity, totals, {SEEN_TOTAL: size} if entity == "user" else {}, latest, now)


def pack_facts(facts: Facts) -> str:
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def unpack_facts(text: str | None) -> Facts:
    if text is None:
        return Facts()
    genres, people = json.loads(text)
    return Facts(tuple(genres), tuple(people))


def pack(event: PastEvent) -> str:
    return f"{event.timestamp}|{event.action}|{'' if event.value is None else repr(event.value)}|{event.item_id}"


def unpack(text: str) -> PastEvent:
    timestamp, action, value, item_id = text.split("|", 3)
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r} in a stored history")
    return PastEvent(item_id, action, float(value) if value else None, int(timestamp))
