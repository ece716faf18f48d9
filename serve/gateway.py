"""Gateway: the HTTP face of the graph. Checks the form of a request, gives it a trace id, and turns every error into a problem document."""

# no postponed annotations: FastAPI reads those of the routes while Ray Serve rebuilds the class
import asyncio
import re
import time
import uuid
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import problems
from serve.calls import within
from serve.metrics import GatewayMetrics, prometheus_text
from serve.problems import ProblemException, Refusal
from ugt.api import TRACE_HEADER, Dependency, Feedback, FeedbackAccepted, Health, Problem, Recommendation, RecommendRequest, SimilarItems, SimilarRequest
from ugt.stores.records import Records

ANSWER_SECONDS = 15.0  # far above every budget of the ladder: only a hung replica takes so long
TRACE_ID = re.compile(r"[0-9A-Za-z_-]{8,64}")
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {problems.MEDIA_TYPE: {}}, "description": title} for status, title in dict(problems.PROBLEMS.values()).items()
}


class Traced:
    """Every request has a trace id: the client's own if it sent one, else a new one; every answer carries it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-trace-id"), "")
        trace_id = scope["ugt_trace_id"] = given if TRACE_ID.fullmatch(given) else uuid.uuid4().hex

        async def traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message.get("headers", []) if k.lower() != b"x-trace-id"]
                message = {**message, "headers": [*headers, (b"x-trace-id", trace_id.encode())]}
            await send(message)

        await self.app(scope, receive, traced)


app = FastAPI(title="UGT recommender", version="1", description="Generative recommendations. Errors are RFC 9457 problem documents; see docs/errors.md.")
app.add_middleware(Traced)
problems.install(app)


@serve.deployment
@serve.ingress(app)
class Gateway:
    def __init__(self, recommender: DeploymentHandle, events: DeploymentHandle, sql_url: str):
        self._recommender, self._events = recommender, events
        self._records = Records(sql_url)
        self._metrics = GatewayMetrics()

    @app.post("/api/v1/recommend", response_model=Recommendation, responses=REFUSALS, summary="Items for a user, best first")
    async def recommend(self, body: RecommendRequest, request: Request) -> Response:
        return await self._answer(request, "recommend", self._recommender.recommend.remote(body, request.scope["ugt_trace_id"]))

    @app.post("/api/v1/similar", response_model=SimilarItems, responses=REFUSALS, summary="Items like an item")
    async def similar(self, body: SimilarRequest, request: Request) -> Response:
        return await self._answer(request, "similar", self._recommender.similar.remote(body, request.scope["ugt_trace_id"]))

    @app.post("/api/v1/feedback", status_code=202, response_model=FeedbackAccepted, responses=REFUSALS, summary="What a user did")
    async def feedback(self, body: Feedback, request: Request) -> Response:
        return await self._answer(request, "feedback", self._events.append.remote(body, request.scope["ugt_trace_id"]), 202)

    @app.get("/health", response_model=Health, summary="Whether the server lives, and the state of each dependency")
    async def health(self) -> Response:
        return JSONResponse((await self._health()).model_dump())

    @app.get("/ready", response_model=Health, responses={503: {"model": Health}}, summary="Whether every dependency answers (503 if not)")
    async def ready(self) -> Response:
        health = await self._health()
        return JSONResponse(health.model_dump(), 200 if health.status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={503: REFUSALS[503]}, summary="Prometheus text")
    async def metrics(self) -> Response:
        try:
            return PlainTextResponse(await prometheus_text(), media_type="text/plain; version=0.0.4")
        except httpx.HTTPError as error:
            raise ProblemException(Refusal("unavailable", f"The metrics agent of a Ray node does not answer ({type(error).__name__}).")) from error

    async def _answer(self, request: Request, route: str, call: Any, status: int = 200) -> Response:
        start = time.perf_counter()
        code = 500
        try:
            body = await within(call, ANSWER_SECONDS)
            if isinstance(body, Refusal):
                code = problems.PROBLEMS[body.name][0]
                raise ProblemException(body)
            code = status
            return Response(body.model_dump_json(), status, {TRACE_HEADER: request.scope["ugt_trace_id"]}, "application/json")
        except BackPressureError as error:
            code = 429
            raise ProblemException(Refusal("overloaded", "Too many requests wait already.")) from error
        except (RayActorError, TimeoutError) as error:  # a replica died or hangs under the request; another one takes the retry
            code = 503
            raise ProblemException(Refusal("unavailable", f"A part of the server did not answer ({type(error).__name__}). Try again.")) from error
        finally:
            self._metrics.requests.inc(tags={"route": route, "status": str(code)})
            self._metrics.latency.observe((time.perf_counter() - start) * 1000, tags={"route": route})

    async def _health(self) -> Health:
        found: dict[str, str | None] = {}
        version = None
        try:
            version, parts = await within(self._recommender.status.remote(), 5.0)
            found |= {"recommender": None, **parts}
        except Exception as error:  # whatever it is, it is the state of the recommender
            found["recommender"] = f"{type(error).__name__}: {error}"
        try:
            await within(self._events.ping.remote(), 5.0)
            found["events"] = None
        except Exception as error:
            found["events"] = f"{type(error).__name__}: {error}"
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._records.ping)
            found["sql"] = None
        except Exception as error:
            found["sql"] = f"{type(error).__name__}: {error}"
        dependencies = {name: Dependency(state="failed" if wrong else "ok", detail=wrong[:300] if wrong else None) for name, wrong in found.items()}
        return Health(status="failed" if any(found.values()) else "ok", model_version=version, dependencies=dependencies)
