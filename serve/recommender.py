"""Recommender: one request down the ladder ugt -> retrieval -> popular, and the last check that nothing illegal leaves.

Excluded are the items the user ever had an event with, what was shown within the exposure window and what the request names. Exclusions and filters
travel into the decode and the search, so a filtered page is as full as the catalogue allows. A rung that fails or is late is skipped, and every
item says which rung it came from. Scores are the rungs' own: fused head score (ugt, retrieval), cosine (retrieval without a user vector), number
of events (popular); they order items within a rung and are not comparable across rungs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import redis
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.calls import within
from serve.catalogue import Catalogue
from serve.generator import Generated, Generation
from serve.logs import logger
from serve.metrics import RecommenderMetrics
from serve.problems import Refusal
from serve.reasons import reason
from serve.retriever import Candidates, FilterKey
from serve.versions import VersionSource
from ugt.api import Recommendation, RecommendRequest, SimilarItems, SimilarRequest
from ugt.memory import Memory, Recall
from ugt.model.inputs import USER_ATTRIBUTES
from ugt.ranking import NO_ITEMS, Fusion, page, proposals
from ugt.ranking import Candidates as Proposed
from ugt.schema import ACTION_IDS, Rung
from ugt.settings import ServeConfig
from ugt.stores.features import ALL, OnlineFeatures, UserState, segment_of

HISTORY = 200  # events read for a request, or as many as the model reads if those are more; events of items that are gone leave fewer
POPULAR_PAGE = 1000
NEIGHBOURS_OF = 10  # newest items whose mean stands for the user when no user vector could be made


@dataclass(frozen=True)
class Pick:
    index: int
    score: float
    source: Rung


@dataclass(frozen=True)
class Loaded:
    """What belongs together of one model version: item indices mean the same in all of it. A request keeps the one it began with."""

    version: str
    catalogue: Catalogue
    fusion: Fusion
    memory: Memory | None
    events_read: int


@dataclass
class Request:
    """A request with what was read for it."""

    body: RecommendRequest
    trace_id: str
    loaded: Loaded
    user: UserState
    history: list[int]  # item_index, oldest first
    exclude: list[int]
    key: FilterKey
    rungs: dict[str, Any] = field(default_factory=dict)  # what each rung did, for debug_info


@serve.deployment
class Recommender:
    def __init__(self, generator: DeploymentHandle, retriever: DeploymentHandle, source: VersionSource, config: ServeConfig):
        self._generator, self._retriever, self._source, self._config = generator, retriever, source, config
        self._features = OnlineFeatures(source.resolved().redis_url, config.exposure_hours)
        self._metrics = RecommenderMetrics()
        self._log = logger("Recommender")
        # requests of one user take turns: two at once must not show the same items
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def reconfigure(self, user_config: dict[str, str]) -> None:
        """Load the catalogue of the version named by `user_config`."""
        version = user_config["version"]
        folder = self._source.folder(version)
        catalogue, events_read = self._source.catalogue(folder), max(HISTORY, self._source.max_length(folder))
        self._loaded = Loaded(version, catalogue, *self._source.fusion(folder), events_read)
        self._metrics.version.set(1, tags={"version": version})

    # --- /recommend

    async def recommend(self, body: RecommendRequest, trace_id: str) -> Recommendation | Refusal:
        """Refuses with `unavailable` if Redis does not answer: without it nobody knows what may be shown."""
        lock = self._turns.setdefault(body.user_id, asyncio.Lock())
        async with lock:
            start = time.perf_counter()
            try:
                answer = await self._answer(body, trace_id)
            except redis.RedisError as error:
                self._log.error("redis does not answer", trace_id=trace_id, error=repr(error))
                return Refusal("unavailable", "Redis does not answer.")
        sources = [i.source for i in answer.items]
        for source in set(sources):
            self._metrics.items.inc(sources.count(source), tags={"source": source})
        self._log.info(
            "recommended",
            trace_id=trace_id,
            request_id=answer.request_id,
            items=len(sources),
            sources={s: sources.count(s) for s in set(sources)},
            ms=round((time.perf_counter() - start) * 1000, 2),
        )
        return answer

    async def _answer(self, body: RecommendRequest, trace_id: str) -> Recommendation:
        now, loaded = time.time(), self._loaded
        user = await self._features.user_state(body.user_id, now, loaded.events_read)
        excluded = user.seen | user.exposed | set(body.exclude)
        request = Request(
            body=body,
            trace_id=trace_id,
            loaded=loaded,
            user=user,
            history=loaded.catalogue.indices(e.item_id for e in user.history),
            exclude=loaded.catalogue.indices(excluded),
            key=loaded.catalogue.filter_key(body.item_types, body.categories),
        )
        picks = await self._personal(request) if request.history else []
        if len(picks) < body.size:
            picks += await self._popular(request, excluded, {p.index for p in picks}, body.size - len(picks))
        picks = self._checked(request, picks[: body.size], excluded)
        items = [
            loaded.catalogue.card(p.index)
            | {"score": p.score, "position": position, "source": p.source, "reason": self._reason(request, p) if body.explain else None}
            for position, p in enumerate(picks, 1)
        ]
        # before the answer leaves: a request that follows at once must know what this one showed
        await self._features.record_exposure(body.user_id, [i["item_id"] for i in items], time.time())
        return Recommendation(
            request_id=uuid.uuid4().hex,
            user_id=body.user_id,
            items=items,
            model_version=loaded.version,
            trace_id=trace_id,
            generated_at=datetime.fromtimestamp(now, UTC).isoformat(),
            debug_info=self._debug(request, len(items)),
        )

    async def _personal(self, request: Request) -> list[Pick]:
        """The rungs ugt and retrieval with what the training remembers, fused the way evaluation fuses them; empty if neither rung answered."""
        generated: Generated | None = await self._rung(
            request, "ugt", self._config.generation_budget_ms, self._generator.generate.remote(self._generation(request))
        )
        if generated is None:
            call = self._retriever.like.remote(request.loaded.version, request.history[-NEIGHBOURS_OF:], request.exclude, request.key, self._config.candidates)
            near: Candidates | None = await self._rung(request, "retrieval", self._config.fallback_budget_ms, call)
            return [] if near is None else _picks(near.items, near.scores, set())
        request.rungs["ugt"]["decoding"] = generated.strategy
        recall = recalled(request)
        proposed = NO_ITEMS if recall is None else proposals(recall)
        ask = np.concatenate([generated.items, proposed])
        call = self._retriever.search.remote(request.loaded.version, generated.user_vector, request.exclude, request.key, self._config.candidates, ask)
        found: Candidates | None = await self._rung(request, "retrieval", self._config.fallback_budget_ms, call)
        if found is None:
            return _picks(generated.items, generated.log_probs, set(generated.items.tolist()))
        items, scores = fused(generated, found, recall, proposed, request.loaded.fusion, request.body.size)
        return _picks(items, scores, set(generated.items.tolist()))

    async def _rung(self, request: Request, rung: str, budget_ms: int, call: Any) -> Any:
        """The answer of a rung, or None if it is late or fails; a late one is told to stop."""
        start = time.perf_counter()
        cause: str | None = None
        try:
            return await within(call, budget_ms / 1000)
        except TimeoutError:
            cause = "late"
        except Exception as error:  # any failure of a rung means the next rung
            cause = "failed"
            self._log.warning("rung failed", rung=rung, trace_id=request.trace_id, error=repr(error)[:500])
        finally:
            milliseconds = (time.perf_counter() - start) * 1000
            request.rungs[rung] = {"ms": round(milliseconds, 2), "state": cause or "ok"}
            self._metrics.rung_latency.observe(milliseconds, tags={"rung": rung})
            if cause is not None:
                self._metrics.rung_failures.inc(tags={"rung": rung, "cause": cause})
        return None

    def _generation(self, request: Request) -> Generation:
        events = [e for e in request.user.history if e.item_id in request.loaded.catalogue.index]
        profile = request.user.profile
        timestamp = request.body.context.timestamp
        return Generation(
            version=request.loaded.version,
            items=request.history,
            actions=[ACTION_IDS[e.action] for e in events],
            values=[float("nan") if e.value is None else e.value for e in events],
            timestamps=[e.timestamp for e in events],
            now=int(time.time()) if timestamp is None else timestamp,
            user={} if profile is None else {a.field: getattr(profile, a.field) for a in USER_ATTRIBUTES.values()},
            exclude=request.exclude,
            filter_key=request.key,
            strategy=request.body.decoding,
            seed=zlib.crc32(request.trace_id.encode()),  # what was drawn can be drawn again from the log
        )

    async def _popular(self, request: Request, excluded: set[str], taken: set[int], count: int) -> list[Pick]:
        """The most popular legal items, of the user's segment first; all of the catalogue is behind them."""
        start = time.perf_counter()
        types, categories = set(request.key[0]), set(request.key[1])
        picks: list[Pick] = []
        segment = segment_of(request.user.profile)
        for name in (segment, ALL) if segment != ALL else (ALL,):
            offset = 0
            while len(picks) < count and (page := await self._features.popular(name, offset, POPULAR_PAGE)):
                offset += len(page)
                for item_id, events in page:
                    index = request.loaded.catalogue.index.get(item_id)
                    if index is None or index in taken or item_id in excluded or not request.loaded.catalogue.fits(index, types, categories):
                        continue
                    taken.add(index)
                    picks.append(Pick(index, events, "popular"))
                    if len(picks) == count:
                        break
        milliseconds = (time.perf_counter() - start) * 1000
        request.rungs["popular"] = {"ms": round(milliseconds, 2), "state": "ok", "segment": segment}
        self._metrics.rung_latency.observe(milliseconds, tags={"rung": "popular"})
        return picks

    def _checked(self, request: Request, picks: list[Pick], excluded: set[str]) -> list[Pick]:
        """The picks that may be shown. Every rung keeps to the rules by itself; what is stopped here is a fault, counted and logged."""
        types, categories = set(request.key[0]), set(request.key[1])
        legal: list[Pick] = []
        catalogue = request.loaded.catalogue
        taken: set[int] = set()
        for pick in picks:
            exists = 0 <= pick.index < len(catalogue)
            if exists and pick.index not in taken and catalogue.item_ids[pick.index] not in excluded and catalogue.fits(pick.index, types, categories):
                taken.add(pick.index)
                legal.append(pick)
            else:
                self._metrics.illegal.inc()
                self._log.error("illegal item stopped", trace_id=request.trace_id, index=pick.index, source=pick.source)
        return legal

    def _reason(self, request: Request, pick: Pick) -> str:
        return reason(request.loaded.catalogue, pick.index, pick.source, request.history, segment_of(request.user.profile))

    def _debug(self, request: Request, returned: int) -> dict[str, Any] | None:
        info: dict[str, Any] = {}
        if returned < request.body.size:
            catalogue = request.loaded.catalogue
            allowed = catalogue.allowed(request.key)
            passing = len(catalogue) if allowed is None else int(allowed.sum())
            blocked = len(request.exclude) if allowed is None else int(allowed[request.exclude].sum())
            cause = "exhausted" if passing - blocked <= returned else "failed"
            self._metrics.short_pages.inc(tags={"cause": cause})
            info["short_page"] = (
                f"{returned} of {request.body.size} items: {passing} of {len(catalogue)} items pass the filters, {blocked} of them were seen, "
                f"excluded or shown within {self._config.exposure_hours:g} h" + ("" if cause == "exhausted" else "; a rung did not answer")
            )
        if request.body.debug:
            info |= {
                "rungs": request.rungs,
                "history": len(request.history),
                "excluded": len(request.exclude),
                "seen": len(request.user.seen),
                "exposed": len(request.user.exposed),
                "known_user": request.user.profile is not None,
            }
        return info or None

    # --- /similar, readiness

    async def similar(self, body: SimilarRequest, trace_id: str) -> SimilarItems | Refusal:
        """Refuses with `unknown-item`, `unknown-space` or `unavailable`."""
        loaded = self._loaded
        index = loaded.catalogue.index.get(body.item_id)
        if index is None:
            return Refusal("unknown-item", f"item_id: there is no item {body.item_id!r}.", {"item_id": body.item_id})
        try:
            call = self._retriever.similar.remote(loaded.version, index, body.space, loaded.catalogue.indices(body.exclude), body.size)
            found: Candidates | None = await within(call, 5.0)
        except Exception as error:
            self._log.error("retriever does not answer", trace_id=trace_id, error=repr(error)[:500])
            return Refusal("unavailable", "The retriever does not answer.")
        if found is None:
            return Refusal("unknown-space", f"space: this model was made without {body.space} vectors.")
        items = [
            loaded.catalogue.card(p.index) | {"score": p.score, "position": position, "source": p.source}
            for position, p in enumerate(_picks(found.items, found.scores, set()), 1)
        ]
        generated_at = datetime.now(UTC).isoformat()
        return SimilarItems(item_id=body.item_id, space=body.space, items=items, model_version=loaded.version, trace_id=trace_id, generated_at=generated_at)

    async def status(self) -> tuple[str, dict[str, str | None]]:
        """The version, and each dependency by name: None if it is well, else what is wrong.

        Also opens the way to the other deployments before the first request, whose budget that would eat.
        """
        calls = (self._generator.status.remote(), self._retriever.status.remote(), self._features.ping())
        generator, retriever, store = await asyncio.gather(*(within(c, 3.0) for c in calls), return_exceptions=True)
        version, milvus = retriever if isinstance(retriever, tuple) else ("", None)
        ours = self._loaded.version
        return ours, {
            "model": None if generator == version == ours else f"versions differ: {ours}, generator {generator!r}, retriever {version!r}",
            "generator": _wrong(generator),
            "retriever": _wrong(retriever),
            "milvus": milvus if isinstance(retriever, tuple) else "the retriever does not answer",
            "redis": _wrong(store),
        }


def recalled(request: Request) -> Recall | None:
    """What memory says to the history, as far as this request may get it; None where the version has no use for a memory."""
    catalogue, memory = request.loaded.catalogue, request.loaded.memory
    if memory is None:
        return None
    recall = memory.recall(request.history).without(np.asarray(request.exclude, np.int64))
    types, categories = set(request.key[0]), set(request.key[1])
    if not types and not categories:
        return recall
    return recall.without(np.array([i for i in recall.items_F.tolist() if not catalogue.fits(i, types, categories)], np.int64))


def fused(generated: Generated, found: Candidates, recall: Recall | None, proposed: np.ndarray, fusion: Fusion, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The `size` best of both heads and of what memory proposes, and their scores, mixed as evaluation mixes them: the dense head's list goes no deeper than
    the beam's. `found.asked` are the dense scores of the generated items and then of the proposed ones.

    A deeper list would lift items of the beam under `reciprocal_rank`, which counts places. Only a page longer than the beam needs it.
    """
    beam, depth = len(generated.items), max(len(generated.items), size)
    of_beam, of_proposed = found.asked[:beam], found.asked[beam:]
    dense = found.items[:depth], found.scores[:depth]
    return page(generated.strategy, Proposed(generated.items, generated.log_probs, of_beam, *dense, recall, proposed, of_proposed), fusion, size)


def _picks(items: Any, scores: Any, generated: set[int]) -> list[Pick]:
    return [Pick(i, s, "ugt" if i in generated else "retrieval") for i, s in zip(items.tolist(), scores.tolist(), strict=True)]


def _wrong(result: Any) -> str | None:
    return f"{type(result).__name__}: {result}"[:300] if isinstance(result, BaseException) else None
