"""The vocabulary of the system: items, users, events, semantic IDs, recommendations, and the base of every config."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["view", "click", "like", "dislike", "favorite", "share", "comment", "purchase", "rate", "play", "complete", "search"]
ItemType = Literal["movie", "series", "episode", "video", "product", "article"]
SourceKind = Literal["sample", "imdb", "movielens", "amazon", "sequences"]
Rung = Literal["ugt", "cold_start", "retrieval", "popular"]
Head = Literal["fused", "without_memory", "generative", "dense"]  # rankings of the model; the second is the fused one by the two heads alone
HEADS: tuple[Head, ...] = get_args(Head)
DecodingStrategy = Literal["beam", "diverse_beam", "nucleus"]

ACTIONS: tuple[str, ...] = get_args(Action)
ITEM_TYPES: tuple[str, ...] = get_args(ItemType)
# 0 is the padding and "unknown" id of every categorical input of the model; real codes start at 1 (fault 18).
ACTION_IDS: dict[str, int] = {name: i + 1 for i, name in enumerate(ACTIONS)}


class UGTError(Exception):
    """An error a user can act on: the message says what was wrong, where, and what to do. The CLI prints it without a trace."""


class Config(BaseModel):
    """Base of every config class: unknown fields are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(BaseModel):
    """Base of every record that crosses a border of the system: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Item(Record):
    item_id: str = Field(min_length=1, max_length=128)
    item_type: ItemType = "movie"
    title: str
    year: int | None = None
    runtime_minutes: int | None = None
    genres: list[str] = []
    countries: list[str] = []
    rating: float | None = None
    votes: int | None = None
    description: str | None = None
    imdb_id: str | None = None


class User(Record):
    user_id: str = Field(min_length=1, max_length=128)
    gender: str | None = None
    age: int | None = None
    occupation: str | None = None


class Event(Record):
    event_id: str
    user_id: str
    item_id: str
    action: Action
    value: float | None = None
    timestamp: int = Field(description="Unix time in seconds")


class SemanticId(Record):
    """Three codes that name exactly one item."""

    l1: int
    l2: int
    l3: int


class RecommendedItem(Record):
    item_id: str
    item_type: ItemType
    title: str
    score: float
    reason: str | None = None
    position: int
    source: Rung
    semantic_id: list[int] | None = None
