"""Events: feedback to the stream and the online features, durable and visible before it is acknowledged."""

from __future__ import annotations

import asyncio
import time
import uuid

import redis
from ray import serve

from serve.logs import logger
from serve.metrics import EventMetrics
from serve.problems import Refusal
from serve.versions import VersionSource
from ugt.api import Feedback, FeedbackAccepted
from ugt.schema import Event
from ugt.stores.features import OnlineFeatures


@serve.deployment
class Events:
    def __init__(self, source: VersionSource, exposure_hours: float):
        stores = source.resolved()
        self._features = OnlineFeatures(stores.redis_url, exposure_hours, ttl_days=stores.online_ttl_days)
        self._metrics = EventMetrics()
        self._log = logger("Events")

    async def ping(self) -> None:
        """Raises redis.RedisError if the stream can't be reached."""
        await self._features.ping()

    async def append(self, feedback: Feedback, trace_id: str) -> FeedbackAccepted | Refusal:
        """The event is durable and visible to the next recommendation when this returns. Refuses with `unknown-item` or `unavailable`."""
        try:
            return await self._append(feedback, trace_id)
        except redis.RedisError as error:
            self._log.error("redis does not answer", trace_id=trace_id, error=repr(error))
            return Refusal("unavailable", "Redis does not answer; whether the event was stored is not known.")

    async def _append(self, feedback: Feedback, trace_id: str) -> FeedbackAccepted | Refusal:
        start = time.perf_counter()
        if not await self._features.has_item(feedback.item_id):
            self._metrics.refused.inc()
            return Refusal("unknown-item", f"item_id: there is no item {feedback.item_id!r}.", {"item_id": feedback.item_id})
        event = Event(
            event_id=uuid.uuid4().hex,
            user_id=feedback.user_id,
            item_id=feedback.item_id,
            action=feedback.action,
            value=feedback.value,
            timestamp=feedback.context.timestamp if feedback.context.timestamp is not None else int(time.time()),
        )
        given = feedback.model_dump(include={"request_id", "position", "duration"}, exclude_none=True)
        context = feedback.context.model_dump(exclude_none=True, exclude={"timestamp"})
        details = {k: str(v) for k, v in {**given, **context, "trace_id": trace_id, "received_at": int(time.time())}.items()}
        # shielded: once begun it is finished, even if the client hangs up; an event half sent would still be stored
        await asyncio.shield(self._features.append(event, details))
        milliseconds = (time.perf_counter() - start) * 1000
        self._metrics.events.inc(tags={"action": event.action})
        self._metrics.latency.observe(milliseconds)
        self._log.info("event stored", trace_id=trace_id, event_id=event.event_id, action=event.action, ms=round(milliseconds, 2))
        return FeedbackAccepted(event_id=event.event_id, trace_id=trace_id)
