"""Load on a running server, and a judge of every answer that trusts nothing the server says of itself.

The judge knows the catalogue and the histories from the artifacts, and keeps its own record of what was shown and fed back. Illegal is an item that
does not exist, is excluded, does not pass the filter, comes twice, was seen by the user, or was shown to the user before in this run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from ugt import histories as histories_module
from ugt.artifacts import ITEMS, read_table
from ugt.runtime import STRATEGIES
from ugt.schema import ITEM_TYPES, UGTError

RECOMMEND = "/api/v1/recommend"
FEEDBACK = "/api/v1/feedback"
SOURCES = ("ugt", "cold_start", "retrieval", "popular")


@dataclass
class World:
    """What is true, read from the artifacts, and what was shown and fed back so far."""

    types: dict[str, str]
    genres: dict[str, frozenset[str]]
    titles: dict[str, str]
    users: list[str]
    seen: dict[str, set[str]]
    shown: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def load(cls, etl_dir: Path, histories_dir: Path, before: Mapping[str, set[str]] | None = None) -> World:
        """`before`: what each user was shown or fed back before this run, within the exposure window; it may not come again, and may fill no page."""
        rows = read_table(Path(etl_dir) / "items", ITEMS).sort_by("item_index").select(["item_id", "item_type", "title", "genres"]).to_pylist()
        item_ids = [row["item_id"] for row in rows]
        h = histories_module.load(Path(histories_dir))
        seen = {user_id: {item_ids[i] for i in h.items[h.row(u)].tolist()} for u, user_id in enumerate(h.user_ids)}
        return cls(
            types={row["item_id"]: row["item_type"] or "movie" for row in rows},
            genres={row["item_id"]: frozenset(g.casefold() for g in row["genres"] or []) for row in rows},
            titles={row["item_id"]: row["title"] or row["item_id"] for row in rows},
            users=h.user_ids,
            seen=seen,
            shown=defaultdict(set, {user_id: set(items) for user_id, items in (before or {}).items()}),
        )

    def faults(self, body: dict[str, Any], answer: dict[str, Any]) -> list[str]:
        """Every way in which an answer breaks the rules; also remembers what it showed."""
        user_id, types = body["user_id"], set(body.get("item_types", []))
        categories = {c.casefold() for c in body.get("categories", [])}
        excluded, seen, shown = set(body.get("exclude", [])), self.seen.get(user_id, set()), self.shown[user_id]
        faults, page = [], set()
        if answer.get("user_id") != user_id or len(answer["items"]) > body.get("size", 20):
            faults.append("another user or too many items")
        for position, item in enumerate(answer["items"], 1):
            item_id = item["item_id"]
            rules = {
                "does not exist": item_id not in self.types,
                "excluded": item_id in excluded,
                "filtered": item_id in self.types and not self.passes(item_id, types, categories),
                "duplicate": item_id in page,
                "already seen": item_id in seen,
                "just shown": item_id in shown,
                "other title or type": item_id in self.types and (item["title"], item["item_type"]) != (self.titles[item_id], self.types[item_id]),
                "position or source is wrong": item["position"] != position or item["source"] not in SOURCES,
            }
            faults += [f"{item_id}: {name}" for name, broken in rules.items() if broken]
            page.add(item_id)
        short = len(answer["items"]) < body.get("size", 20)
        if short and self.eligible(body) - page:
            faults.append(f"page of {len(page)} although {len(self.eligible(body) - page)} more items are legal")
        shown |= page
        return faults

    def passes(self, item_id: str, types: set[str], categories: set[str]) -> bool:
        return (not types or self.types[item_id] in types) and (not categories or bool(self.genres[item_id] & categories))

    def eligible(self, body: dict[str, Any]) -> set[str]:
        """Items that may be shown as far as this record knows (other clients may have shown more)."""
        types, categories = set(body.get("item_types", [])), {c.casefold() for c in body.get("categories", [])}
        gone = self.seen.get(body["user_id"], set()) | self.shown[body["user_id"]] | set(body.get("exclude", []))
        return {i for i in self.types if i not in gone and self.passes(i, types, categories)}

    def requests(self, rng: random.Random, users: list[str]) -> Iterator[dict[str, Any]]:
        """Endless plausible requests: any user, mostly a page of 10 or 20, one in three filtered, one in three with exclusions, half by a named strategy."""
        all_genres = sorted({g for genres in self.genres.values() for g in genres})
        all_types, items = sorted(set(self.types.values()) & set(ITEM_TYPES)), sorted(self.types)
        while True:
            body: dict[str, Any] = {"user_id": rng.choice(users), "size": rng.choice([1, 5, 10, 10, 20, 20, 50])}
            if rng.random() < 0.33 and all_genres:
                body["categories"] = rng.sample(all_genres, k=min(len(all_genres), rng.randint(1, 3)))
            if rng.random() < 0.2:
                body["item_types"] = rng.sample(all_types, k=rng.randint(1, len(all_types)))
            if rng.random() < 0.33:
                body["exclude"] = rng.sample(items, k=min(len(items), rng.randint(1, 50)))
            if rng.random() < 0.5:
                body["decoding"] = rng.choice(STRATEGIES)
            if rng.random() < 0.1:
                body["explain"] = True
            yield body


@dataclass
class Outcome:
    """What a run of requests came to."""

    milliseconds: list[float] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: int = 0
    illegal: int = 0
    short_pages: int = 0
    examples: list[str] = field(default_factory=list)  # the first faults, in words
    seconds: float = 0.0

    def percentile(self, q: float) -> float:
        return round(float(np.percentile(self.milliseconds, q)), 2) if self.milliseconds else float("nan")


def run(
    base_url: str,
    etl_dir: Path,
    histories_dir: Path,
    requests: int = 10_000,
    concurrency: int = 16,
    seed: int = 0,
    before: Mapping[str, set[str]] | None = None,
) -> dict[str, Any]:
    """Closed loop at one client, then at `concurrency`; every answer judged. Nothing is retried.

    Raises UGTError if the server does not answer at all.
    """
    world = World.load(etl_dir, histories_dir, before)
    _check_up(base_url)
    singles = max(1, requests // 10)
    one = asyncio.run(_load(base_url, world, singles, 1, seed))
    many = asyncio.run(_load(base_url, world, requests - singles, concurrency, seed + 1))
    return {
        "requests": requests,
        "c1": {"p50_ms": one.percentile(50), "p99_ms": one.percentile(99), "errors": one.errors},
        f"c{concurrency}": {
            "rps": round(len(many.milliseconds) / many.seconds, 1),
            "p50_ms": many.percentile(50),
            "p99_ms": many.percentile(99),
            "errors": many.errors,
        },
        "sources": dict(one.sources + many.sources),
        "short_pages": one.short_pages + many.short_pages,
        "illegal": one.illegal + many.illegal,
        "faults": (one.examples + many.examples)[:10],
    }


def exercise(
    base_url: str, etl_dir: Path, histories_dir: Path, requests: int = 500, seed: int = 0, before: Mapping[str, set[str]] | None = None
) -> dict[str, Any]:
    """The demo's proof: `requests` judged requests from 4 clients, then feedback, and whether the very next answer reflects it.

    Returns requests, errors, illegal_items, p50_ms, p99_ms, sources, short_pages, faults, feedback_sent, feedback_visible.
    """
    world = World.load(etl_dir, histories_dir, before)
    _check_up(base_url)
    outcome = asyncio.run(_load(base_url, world, requests, 4, seed))
    sent, visible = asyncio.run(_feedback(base_url, world, seed))
    return {
        "requests": sum(outcome.statuses.values()),
        "errors": outcome.errors,
        "illegal_items": outcome.illegal,
        "p50_ms": outcome.percentile(50),
        "p99_ms": outcome.percentile(99),
        "sources": dict(outcome.sources),
        "short_pages": outcome.short_pages,
        "faults": outcome.examples,
        "feedback_sent": sent,
        "feedback_visible": visible,
    }


async def _load(base_url: str, world: World, requests: int, concurrency: int, seed: int) -> Outcome:
    outcome = Outcome()
    left = iter(range(requests))

    async def client(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        # each client has its own users: what was shown to a user is then known without doubt when the next answer is judged
        users = world.users[number::concurrency] or world.users
        bodies = world.requests(rng, users)
        async with httpx.AsyncClient(base_url=base_url, timeout=10.0, trust_env=False) as http:
            for _ in left:
                body = next(bodies)
                await _one(http, world, body, outcome)

    start = time.perf_counter()
    await asyncio.gather(*(client(n) for n in range(concurrency)))
    outcome.seconds = time.perf_counter() - start
    return outcome


async def _one(http: httpx.AsyncClient, world: World, body: dict[str, Any], outcome: Outcome) -> None:
    start = time.perf_counter()
    try:
        response = await http.post(RECOMMEND, json=body)
    except httpx.HTTPError as error:
        outcome.errors += 1
        outcome.statuses[0] += 1
        outcome.examples = [*outcome.examples, f"{type(error).__name__}: {error}"][:10]
        return
    outcome.milliseconds.append((time.perf_counter() - start) * 1000)
    outcome.statuses[response.status_code] += 1
    if response.status_code != 200:
        outcome.errors += 1
        outcome.examples = [*outcome.examples, f"{response.status_code}: {response.text[:200]}"][:10]
        return
    answer = response.json()
    faults = world.faults(body, answer)
    outcome.illegal += len(faults)
    outcome.examples = [*outcome.examples, *faults][:10]
    outcome.sources.update(item["source"] for item in answer["items"])
    outcome.short_pages += len(answer["items"]) < body["size"]


async def _feedback(base_url: str, world: World, seed: int, users: int = 5) -> tuple[int, bool]:
    """Feedback on an item that would be recommended again were it not for the feedback; (events sent, whether each next answer reflected it).

    A user who never was is answered from `popular`; after one event the answer must be personal, and the item must be gone. The same user's
    history must have grown by exactly that event.
    """
    visible, sent = True, 0
    run_id = f"{seed}-{time.time_ns()}"
    rng = random.Random(seed)
    items = sorted(world.types)
    async with httpx.AsyncClient(base_url=base_url, timeout=10.0, trust_env=False) as http:
        for n in range(users):
            user_id = f"new-user-{run_id}-{n}"
            ask = {"user_id": user_id, "size": 10, "debug": True}
            before = (await http.post(RECOMMEND, json=ask)).raise_for_status().json()
            item_id = rng.choice([i for i in items if i not in {x["item_id"] for x in before["items"]}])
            reply = await http.post(FEEDBACK, json={"user_id": user_id, "item_id": item_id, "action": "like", "request_id": before["request_id"]})
            sent += reply.status_code == 202
            after = (await http.post(RECOMMEND, json=ask)).raise_for_status().json()
            cold = {x["source"] for x in before["items"]} <= {"popular", "cold_start"} and before["debug_info"]["history"] == 0
            warm = after["debug_info"]["history"] == 1 and any(x["source"] in ("ugt", "retrieval") for x in after["items"])
            gone = item_id not in {x["item_id"] for x in after["items"]}
            visible &= reply.status_code == 202 and cold and warm and gone
        for user_id in rng.sample(world.users, k=min(users, len(world.users))):
            ask = {"user_id": user_id, "size": 10, "debug": True}
            before = (await http.post(RECOMMEND, json=ask)).raise_for_status().json()
            fresh = sorted(world.eligible(ask) - {x["item_id"] for x in before["items"]})
            if not fresh:
                continue
            item_id = rng.choice(fresh)
            reply = await http.post(FEEDBACK, json={"user_id": user_id, "item_id": item_id, "action": "complete"})
            sent += reply.status_code == 202
            world.seen[user_id].add(item_id)
            after = (await http.post(RECOMMEND, json=ask)).raise_for_status().json()
            grown = after["debug_info"]["seen"] == before["debug_info"]["seen"] + 1
            visible &= reply.status_code == 202 and grown and item_id not in {x["item_id"] for x in after["items"]}
    return sent, bool(visible and sent)


def _check_up(base_url: str) -> None:
    try:
        httpx.get(f"{base_url}/health", timeout=10, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise UGTError(f"no server answers at {base_url} ({type(error).__name__}: {error}). Start one: ugt serve run") from error
