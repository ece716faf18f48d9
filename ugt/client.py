"""A small typed client of the HTTP API."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from ugt.api import Feedback, FeedbackAccepted, Health, Problem, Recommendation, RecommendRequest, SimilarItems, SimilarRequest
from ugt.schema import UGTError

Answer = TypeVar("Answer", bound=BaseModel)


class ProblemError(UGTError):
    """The server refused; `problem` is its RFC 9457 answer."""

    def __init__(self, problem: Problem):
        super().__init__(f"{problem.status} {problem.title}: {problem.detail or problem.type} (trace {problem.trace_id})")
        self.problem = problem


class Client:
    """Answers of a running server as objects. Use it as a context manager, or call `close`."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", timeout_s: float = 10.0):
        self.base_url = base_url
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def recommend(self, **fields: Any) -> Recommendation:
        """`fields` are those of RecommendRequest. Raises ProblemError for a refusal, UGTError if the server does not answer."""
        return self._post("/api/v1/recommend", RecommendRequest(**fields), Recommendation)

    def similar(self, **fields: Any) -> SimilarItems:
        """`fields` are those of SimilarRequest."""
        return self._post("/api/v1/similar", SimilarRequest(**fields), SimilarItems)

    def feedback(self, **fields: Any) -> FeedbackAccepted:
        """`fields` are those of Feedback. When this returns, the event is durable and visible to the next `recommend`."""
        return self._post("/api/v1/feedback", Feedback(**fields), FeedbackAccepted)

    def health(self) -> Health:
        return Health.model_validate_json(self._send("GET", "/health").content)

    def ready(self) -> Health:
        """State of each dependency; a server that is not ready answers too, with status `failed`."""
        return Health.model_validate_json(self._send("GET", "/ready").content)

    def metrics(self) -> str:
        """Prometheus text."""
        return self._send("GET", "/metrics").text

    def _post(self, path: str, body: BaseModel, answer: type[Answer]) -> Answer:
        response = self._send("POST", path, body.model_dump_json(exclude_unset=True))
        return answer.model_validate_json(response.content)

    def _send(self, method: str, path: str, content: str | None = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, content=content, headers={"content-type": "application/json"} if content else None)
        except httpx.HTTPError as error:
            raise UGTError(f"{self.base_url} does not answer ({type(error).__name__}: {error}). Start the server: ugt serve run") from error
        if response.headers.get("content-type", "").startswith("application/problem+json"):
            raise ProblemError(Problem.model_validate_json(response.content))
        if response.status_code >= 400 and path != "/ready":
            raise UGTError(f"{self.base_url}{path} answered {response.status_code}: {response.text[:200]}")
        return response
