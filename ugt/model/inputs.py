"""What the model reads: events of a history turned into integer arrays, by one function for training, evaluation and serving.

Choices: padding is on the right, so a causal encoder needs no mask; id 0 of every input is "padding or unknown" and never
a real code; the time gap of a window's first event is unknown, because a server that holds only the last events could not know it either.

What an event and a user say beside the item are *attributes*: small classes in two registries, EVENT_ATTRIBUTES and USER_ATTRIBUTES. A new one is a class and
an entry; batches, model, export and serving find it there, and `ModelConfig` names those a model has.

Shapes: B requests, L events of the longest history in the batch, U user attributes. numpy only: serving replicas load no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugt.schema import ACTIONS, UGTError

IntArray = NDArray[np.int64]

ACTION_CODES = len(ACTIONS) + 1
GAP_CODES = 22  # 0 unknown, then doubling minutes: under 1, 2, 4 ... the last is a year and more
VALUE_CODES = 21  # 0 none, then half points up to 10
CONTEXT_CODES = 9  # 0 unknown, then four parts of the day on weekdays and on weekends (UTC)
AGE_CODES = 12  # 0 unknown, then decades


class History(NamedTuple):
    """Events of one user, oldest first. `items` are item indices (0..N-1); a missing value is NaN, a missing timestamp 0."""

    items: ArrayLike
    actions: ArrayLike
    values: ArrayLike
    timestamps: ArrayLike


def gap_codes(timestamps: ArrayLike) -> IntArray:
    """Code of the time since the previous event; 0 for the first event and where a timestamp is missing."""
    t = np.asarray(timestamps, dtype=np.int64)
    codes = np.zeros(len(t), dtype=np.int64)
    codes[1:] = gap_between(t[:-1], t[1:])
    return codes


def gap_between(before: IntArray, after: IntArray) -> IntArray:
    """Code of the time from one event to the next, element by element; 0 where either timestamp is missing."""
    minutes = np.maximum(after - before, 0) // 60
    code = np.minimum(np.floor(np.log2(minutes + 1.0)).astype(np.int64) + 1, GAP_CODES - 1)
    return np.where((after > 0) & (before > 0), code, 0)


def value_codes(values: ArrayLike) -> IntArray:
    """Code of a rating in half points; 0 where there is none."""
    v = np.asarray(values, dtype=np.float64)
    return np.where(v > 0, np.clip(np.rint(v * 2), 1, VALUE_CODES - 1), 0).astype(np.int64)


def context_codes(now: ArrayLike) -> IntArray:
    """Code of the request's time: part of the day, weekday or weekend; 0 where the time is unknown (0)."""
    t = np.asarray(now, dtype=np.int64)
    part = (t % 86400) // 21600
    weekend = ((t // 86400 + 3) % 7 >= 5).astype(np.int64)  # day 0 of Unix time was a Thursday
    return np.where(t > 0, 1 + part + 4 * weekend, 0)


class Events(NamedTuple):
    """Events of B histories as arrays [B, L], 0 in every field where padded: what the codes of an event attribute are made of."""

    item: IntArray  # item index + 1
    action: IntArray
    value: NDArray[np.floating]  # NaN where an event has none
    timestamp: IntArray  # Unix seconds, 0 where unknown


class EventAttribute(Protocol):
    """What an event says beside its item. The model adds an embedding of its code to the event's token and reads the codes from the array `<name>_BL`."""

    size: int  # number of codes, 0 included

    def codes(self, events: Events) -> IntArray:
        """int64 [B, L]; 0 where unknown, and where all fields are 0."""


class Action:
    size = ACTION_CODES

    def codes(self, events: Events) -> IntArray:
        return events.action


class Value:
    size = VALUE_CODES

    def codes(self, events: Events) -> IntArray:
        return value_codes(events.value)


class Gap:
    size = GAP_CODES

    def codes(self, events: Events) -> IntArray:
        gap_BL = np.zeros(events.timestamp.shape, dtype=np.int64)
        gap_BL[:, 1:] = gap_between(events.timestamp[:, :-1], events.timestamp[:, 1:])  # padding has no timestamp
        return gap_BL


EVENT_ATTRIBUTES: dict[str, EventAttribute] = {"action": Action(), "value": Value(), "gap": Gap()}


class UserAttribute(Protocol):
    """What is known of a user: one field of the user's record. The model adds an embedding of its code to the user token."""

    field: str

    def vocabulary(self, values: Sequence[Any]) -> list[str]:
        """The values that get a code of their own, from those seen in training; they are kept with the model."""

    def size(self, vocabulary: Collection[str]) -> int:
        """Number of codes, 0 included."""

    def code(self, value: Any, rank: Mapping[str, int]) -> int:
        """`rank`: the place of each value in the vocabulary, from 1. 0 where `value` is None or not known."""


class Category:
    """A field with a name for each value."""

    def __init__(self, field: str):
        self.field = field

    def vocabulary(self, values: Sequence[Any]) -> list[str]:
        return sorted({v for v in values if v})

    def size(self, vocabulary: Collection[str]) -> int:
        return len(vocabulary) + 1

    def code(self, value: Any, rank: Mapping[str, int]) -> int:
        return rank.get(value or "", 0)


class Decade:
    """An age in years."""

    def __init__(self, field: str):
        self.field = field

    def vocabulary(self, values: Sequence[Any]) -> list[str]:
        return []

    def size(self, vocabulary: Collection[str]) -> int:
        return AGE_CODES

    def code(self, value: Any, rank: Mapping[str, int]) -> int:
        return 0 if value is None else int(np.clip(int(value) // 10 + 1, 1, AGE_CODES - 1))


USER_ATTRIBUTES: dict[str, UserAttribute] = {"gender": Category("gender"), "age": Decade("age"), "occupation": Category("occupation")}


class UserVocabulary:
    """The user attributes of a model and the values each of them has a code for, by name, in the order of USER_ATTRIBUTES; kept with the model."""

    def __init__(self, genders: Sequence[str] = (), occupations: Sequence[str] = (), values: Mapping[str, Sequence[str]] | None = None):
        """`values`: of each attribute, its vocabulary. Without it the attributes are gender, age and occupation."""
        given = {"gender": genders, "age": (), "occupation": occupations} if values is None else values
        self.values = {name: list(given[name]) for name in USER_ATTRIBUTES if name in given}
        self._of = [(USER_ATTRIBUTES[name], {v: i + 1 for i, v in enumerate(known)}) for name, known in self.values.items()]

    @classmethod
    def fit(cls, people: Mapping[str, Sequence[Any]], attributes: Sequence[str] = tuple(USER_ATTRIBUTES)) -> UserVocabulary:
        """`people`: each field of the users' records as a column. `attributes`: names in USER_ATTRIBUTES. Raises UGTError if a field is no column."""
        missing = [f"{name} ({USER_ATTRIBUTES[name].field})" for name in attributes if USER_ATTRIBUTES[name].field not in people]
        if missing:
            raise UGTError(f"model.user_attributes: users have no {', '.join(missing)}, only {', '.join(people)}. Take it out, or add the field to the table.")
        return cls(values={name: USER_ATTRIBUTES[name].vocabulary(people[USER_ATTRIBUTES[name].field]) for name in attributes})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each attribute, the unknown one included."""
        return tuple(attribute.size(rank) for attribute, rank in self._of)

    def codes(self, user: Mapping[str, Any] | None) -> tuple[int, ...]:
        """Codes of one user's attributes, from the user's record; any field of it may be missing or None."""
        return tuple(attribute.code((user or {}).get(attribute.field), rank) for attribute, rank in self._of)

    def to_json(self) -> dict[str, list[str]]:
        return self.values

    @classmethod
    def from_json(cls, value: Mapping[str, list[str]]) -> UserVocabulary:
        """Also of a model that was written when gender, age and occupation were all there was."""
        if "genders" in value:
            return cls(value["genders"], value["occupations"])
        return cls(values=value)


def event_inputs(events: Events) -> dict[str, IntArray]:
    """The arrays of what happened, [B, L] each: `item_BL` and one for each event attribute."""
    return {"item_BL": events.item} | {f"{name}_BL": attribute.codes(events) for name, attribute in EVENT_ATTRIBUTES.items()}


def build_inputs(histories: Sequence[History], now: ArrayLike, user_BU: ArrayLike, max_length: int) -> dict[str, IntArray]:
    """Model inputs of B requests: the last `max_length` events of each history and the moment each is asked at.

    Returns int64 arrays `item_BL` (item index + 1), `action_BL`, `value_BL`, `gap_BL` (one for each event attribute), all 0 where padded, `length_B`,
    `user_BU` and `context_B`. L is the longest history kept, at least 1. An empty history is legal: the user token answers.
    """
    lengths = np.array([min(len(h.items), max_length) for h in histories], dtype=np.int64)  # type: ignore[arg-type]
    shape = (len(histories), max(1, int(lengths.max(initial=0))))
    item_BL, action_BL, time_BL = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    value_BL = np.zeros(shape)
    for row, (history, n) in enumerate(zip(histories, lengths.tolist(), strict=True)):
        for array_BL, events in zip((item_BL, action_BL, value_BL, time_BL), history, strict=True):
            array_BL[row, :n] = events[-n:] if n else []  # type: ignore[index]
        item_BL[row, :n] += 1
    return event_inputs(Events(item_BL, action_BL, value_BL, time_BL)) | {
        "length_B": lengths,
        "user_BU": np.asarray(user_BU, dtype=np.int64),
        "context_B": context_codes(now).reshape(len(histories)),
    }
