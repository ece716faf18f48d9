"""The HTTP contract: requests and answers of every route, shared by the server and the client. Unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ugt.schema import Action, DecodingStrategy, ItemType, RecommendedItem, Record

TRACE_HEADER = "X-Trace-Id"
MAX_SIZE = 100
Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, StringConstraints(max_length=512)]
Space = Literal["fused", "word2vec", "semantic_id"]
State = Literal["ok", "failed"]


class RequestContext(Record):
    """Where and when a request was made. `timestamp` is Unix seconds; the server's clock where it is missing."""

    device_type: Text | None = None
    platform: Text | None = None
    session_id: Text | None = None
    page_type: Text | None = None
    ref_item_id: Id | None = None
    search_query: Text | None = None
    timestamp: int | None = Field(default=None, ge=0, le=4_102_444_800)  # to the year 2100: a value in milliseconds is a mistake


class RecommendRequest(Record):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"user_id": "42", "size": 10, "item_types": ["movie"], "categories": ["Drama"], "explain": True}]}
    )

    user_id: Id
    size: int = Field(default=20, ge=1, le=MAX_SIZE, strict=True)
    context: RequestContext = RequestContext()
    item_types: list[ItemType] = Field(default=[], max_length=6)
    categories: list[Text] = Field(default=[], max_length=50, description="Genres; an item needs one of them")
    exclude: list[Id] = Field(default=[], max_length=1000)
    decoding: DecodingStrategy | None = Field(default=None, description="The model's own where it is missing")
    explain: bool = False
    debug: bool = False


class Recommendation(Record):
    """Answer of /recommend. `debug_info` is there when asked for, and whenever the page is short."""

    request_id: str
    user_id: str
    items: list[RecommendedItem]
    model_version: str
    experiment: str | None = None
    trace_id: str
    generated_at: str
    debug_info: dict[str, Any] | None = None


class SimilarRequest(Record):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"item_id": "tt0114709", "size": 5, "space": "fused"}]})

    item_id: Id
    size: int = Field(default=20, ge=1, le=MAX_SIZE, strict=True)
    exclude: list[Id] = Field(default=[], max_length=1000)
    space: Space = "fused"


class SimilarItems(Record):
    """Answer of /similar. `score`: cosine in the space; for `semantic_id` the number of leading codes shared, plus the dense cosine mapped to 0..1."""

    item_id: str
    space: Space
    items: list[RecommendedItem]
    model_version: str
    trace_id: str
    generated_at: str


class Feedback(Record):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user_id": "42", "item_id": "tt0114709", "action": "rate", "value": 4.5}]})

    user_id: Id
    item_id: Id
    action: Action
    value: float | None = Field(default=None, allow_inf_nan=False)
    request_id: Id | None = None
    position: int | None = Field(default=None, ge=0, le=MAX_SIZE)
    duration: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="Seconds")
    context: RequestContext = RequestContext()


class FeedbackAccepted(Record):
    """The event is durable and the next /recommend of its user sees it."""

    event_id: str
    trace_id: str


class Dependency(Record):
    state: State
    detail: str | None = None


class Health(Record):
    status: State
    model_version: str | None = None
    dependencies: dict[str, Dependency] = {}


class Problem(BaseModel):
    """RFC 9457. The types are listed in docs/errors.md. Validation problems name each field in `errors`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str | None = None
    trace_id: str
