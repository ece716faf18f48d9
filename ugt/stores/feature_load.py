"""Loading the online features: a new generation beside the one readers see, then one switch, then the old one goes.

A load writes under its own number, so readers and events go on in the current generation until `switch` sets another. Before it does, the event
stream is replayed into the new generation from its beginning, but for the events that the tables already hold; the switch is refused by the server
while an entry of the stream is not replayed yet, so no event falls between (the refusal makes new events wait, else a busy stream would never be caught
up with). Of two loads at once the later one wins and the other is told so.
A load that is killed leaves keys of a generation nobody reads; the next load removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from ugt.feature_definitions import LATEST, Entity, Facts
from ugt.schema import Event, UGTError, User
from ugt.stores.features import (
    ALL,
    GENERATION,
    HISTORY_LIMIT,
    PREFIX,
    SEEN_TOTAL,
    STREAM,
    Command,
    OnlineFeatures,
    PastEvent,
    effects,
    event_of,
    pack,
    pack_facts,
    unpack_facts,
)

LOADING = PREFIX + "loading"
PIPELINE = 1000  # commands sent together
REPLAY_BATCH = 100  # events; one batch is one run of a script, and others wait for it

_SWITCH = """
if redis.call('GET', 'ugt:loading') ~= ARGV[1] then return 'superseded' end
if #redis.call('XRANGE', 'ugt:events', ARGV[2], '+', 'COUNT', 1) > 0 then
  redis.call('SET', 'ugt:paused', 1, 'PX', 1000)
  return 'behind'
end
redis.call('SET', 'ugt:generation', ARGV[1])
redis.call('DEL', 'ugt:loading', 'ugt:paused')
return 'done'
"""


class FeatureLoad:
    """One load: `begin`, then users, totals, facts and popularity in any order, then `switch`. The TTL is that of `features`."""

    def __init__(self, features: OnlineFeatures, generation: int):
        self._features, self.generation = features, generation
        self._redis: Any = features.redis

    @classmethod
    async def begin(cls, features: OnlineFeatures) -> FeatureLoad:
        """A new generation, which nobody reads yet. What killed loads left is removed."""
        generation = await features.redis.incr(PREFIX + "generations")
        await features.redis.set(LOADING, generation)
        load = cls(features, generation)
        await load._sweep()
        return load

    def _key(self, kind_and_name: str) -> str:
        return f"{PREFIX}{self.generation}:{kind_and_name}"

    async def users(self, users: Iterable[tuple[User, list[PastEvent]]]) -> None:
        """Profiles, histories (in their order, the last HISTORY_LIMIT events kept) and seen items."""
        pipe, ttl = self._redis.pipeline(transaction=False), self._features.ttl_seconds
        for user, history in users:
            known, past, seen = (self._key(f"{kind}:{user.user_id}") for kind in ("user", "history", "seen"))
            pipe.hset(known, mapping={"known": 1, **{k: v for k in ("gender", "age", "occupation") if (v := getattr(user, k)) is not None}})
            pipe.expire(known, ttl)
            if history:
                pipe.rpush(past, *[pack(e) for e in history[-HISTORY_LIMIT:]])
                pipe.expire(past, ttl)
                pipe.sadd(seen, *{e.item_id for e in history})
                pipe.expire(seen, ttl)
            if len(pipe) >= PIPELINE:
                await pipe.execute()
        await pipe.execute()

    async def totals(self, entity: Entity, rows: Iterable[tuple[str, str, str, int]]) -> None:
        """(id, total, key, number) as `ugt.feature_definitions.totals_of` gives them: rows of one id stand together."""
        pipe = self._redis.pipeline(transaction=False)
        for name, totals in groupby(rows, key=itemgetter(0)):
            at = self._key(f"totals:{entity}:{name}")
            fields = {LATEST if total == LATEST else f"{total}:{key}": number for _, total, key, number in totals if (entity, total) != ("user", SEEN_TOTAL)}
            if fields:
                pipe.hset(at, mapping=fields)
            if entity == "user":
                pipe.expire(at, self._features.ttl_seconds)
            if len(pipe) >= PIPELINE:
                await pipe.execute()
        await pipe.execute()

    async def facts(self, rows: Iterable[tuple[str, Facts]]) -> None:
        """What feedback on an item adds to its user's totals. Items without facts need no row."""
        pipe = self._redis.pipeline(transaction=False)
        for item_id, facts in rows:
            pipe.set(self._key(f"facts:{item_id}"), pack_facts(facts))
            if len(pipe) >= PIPELINE:
                await pipe.execute()
        await pipe.execute()

    async def popularity(self, segment: str, counts: Mapping[str, int], batch: int = 5000) -> None:
        """Number of events by item. The segment `all` must hold every item of the catalogue, with 0 where nobody touched it."""
        items = list(counts.items())
        for start in range(0, len(items), batch):
            await self._redis.zadd(self._key(f"popular:{segment}"), dict(items[start : start + batch]))

    async def switch(self, data_key: str, held: Collection[str] = ()) -> int:
        """Replay the event stream, make this generation the one that is read, remove the others; returns the number of events applied.

        `held` are ids of stream events that the loaded tables hold already. Events of items that are gone stay in the stream only.
        Raises UGTError if another load began since.
        """
        await self._redis.set(self._key("materialized"), data_key)
        applied, after = 0, "0"
        while True:
            more, after = await self._replay(after, held)
            applied += more
            verdict = await self._redis.eval(_SWITCH, 0, self.generation, "(" + after)
            if verdict == "done":
                await self._sweep()
                return applied
            if verdict == "superseded":
                raise UGTError("another load of the online features began while this one ran, and it is the newer one that counts. Let it finish.")

    async def _replay(self, after: str, held: Collection[str]) -> tuple[int, str]:
        """Apply what the stream holds after an entry to this generation; (number applied, last entry read)."""
        applied = 0
        while entries := await self._redis.xrange(STREAM, min="(" + after, count=REPLAY_BATCH):
            after = entries[-1][0]
            events = [event for _, fields in entries if (event := _readable(fields)) is not None and event.event_id not in held]
            look = [command for e in events for command in (("ZSCORE", f"*popular:{ALL}", e.item_id), ("GET", f"*facts:{e.item_id}"))]
            _, *found = await self._features.execute(look, within=str(self.generation))
            known = [(e, facts) for e, score, facts in zip(events, found[::2], found[1::2], strict=True) if score is not None]
            commands: list[Command] = [c for e, facts in known for c in effects(e, unpack_facts(facts), self._features.ttl_seconds)]
            await self._features.execute(commands, within=str(self.generation))
            applied += len(known)
        return applied, after

    async def _sweep(self) -> None:
        """Remove every key but the stream, the exposures, and those of the generation that is read and the one being loaded."""
        current, loading = await self._redis.mget(GENERATION, LOADING)
        kept = (PREFIX + "exposed:", *(f"{PREFIX}{g}:" for g in {current or "0", loading} if g))
        names = {STREAM, GENERATION, LOADING, PREFIX + "generations", PREFIX + "paused"}
        doomed: list[str] = []
        async for key in self._redis.scan_iter(match=PREFIX + "*", count=5000):
            if key not in names and not key.startswith(kept):
                doomed.append(key)
            if len(doomed) >= 5000:
                await self._redis.unlink(*doomed)
                doomed = []
        if doomed:
            await self._redis.unlink(*doomed)


def _readable(fields: Mapping[str, str]) -> Event | None:
    """The event of a stream entry; None if it is none (`data.event_log` puts such an entry into its quarantine, with the reason)."""
    try:
        return event_of(fields)
    except (KeyError, ValueError):
        return None
