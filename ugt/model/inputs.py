"""What the model reads: events of a history turned into integer arrays, by one function for training, evaluation and serving.

Choices: padding is on the right, so a causal encoder needs no mask; id 0 of every input is "padding or unknown" and never
a real code; the time gap of a window's first event is unknown, because a server that holds only the last events could not know it either.

Shapes: B requests, L events of the longest history in the batch, U user attributes. numpy only: serving replicas load no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugt.schema import ACTIONS

IntArray = NDArray[np.int64]

ACTION_CODES = len(ACTIONS) + 1
GAP_CODES = 22  # 0 unknown, then doubling minutes: under 1, 2, 4 ... the last is a year and more
VALUE_CODES = 21  # 0 none, then half points up to 10
CONTEXT_CODES = 9  # 0 unknown, then four parts of the day on weekdays and on weekends (UTC)
AGE_CODES = 12  # 0 unknown, then decades
USER_ATTRIBUTES = ("gender", "age", "occupation")


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


class UserVocabulary:
    """Codes of the user attributes; the values seen in training, kept with the model."""

    def __init__(self, genders: Sequence[str], occupations: Sequence[str]):
        self.genders, self.occupations = list(genders), list(occupations)
        self._gender = {v: i + 1 for i, v in enumerate(self.genders)}
        self._occupation = {v: i + 1 for i, v in enumerate(self.occupations)}

    @classmethod
    def fit(cls, genders: Sequence[str | None], occupations: Sequence[str | None]) -> UserVocabulary:
        return cls(sorted({g for g in genders if g}), sorted({o for o in occupations if o}))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of codes of each attribute, the unknown one included."""
        return len(self.genders) + 1, AGE_CODES, len(self.occupations) + 1

    def codes(self, user: Mapping[str, Any] | None) -> tuple[int, int, int]:
        """Codes of one user's attributes (a mapping with `gender`, `age`, `occupation`, any of them missing or None)."""
        if not user:
            return 0, 0, 0
        age = user.get("age")
        age_code = 0 if age is None else int(np.clip(int(age) // 10 + 1, 1, AGE_CODES - 1))
        return self._gender.get(user.get("gender") or "", 0), age_code, self._occupation.get(user.get("occupation") or "", 0)

    def to_json(self) -> dict[str, list[str]]:
        return {"genders": self.genders, "occupations": self.occupations}

    @classmethod
    def from_json(cls, value: Mapping[str, list[str]]) -> UserVocabulary:
        return cls(value["genders"], value["occupations"])


def build_inputs(histories: Sequence[History], now: ArrayLike, user_BU: ArrayLike, max_length: int) -> dict[str, IntArray]:
    """Model inputs of B requests: the last `max_length` events of each history and the moment each is asked at.

    Returns int64 arrays `item_BL` (item index + 1), `action_BL`, `value_BL`, `gap_BL`, all 0 where padded, `length_B`,
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
    gap_BL = np.zeros(shape, dtype=np.int64)
    gap_BL[:, 1:] = gap_between(time_BL[:, :-1], time_BL[:, 1:])  # padding has no timestamp
    return {
        "item_BL": item_BL,
        "action_BL": action_BL,
        "value_BL": value_codes(value_BL),
        "gap_BL": gap_BL,
        "length_B": lengths,
        "user_BU": np.asarray(user_BU, dtype=np.int64).reshape(len(histories), len(USER_ATTRIBUTES)),
        "context_B": context_codes(now).reshape(len(histories)),
    }
