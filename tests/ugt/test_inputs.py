"""Model inputs: one function for training, evaluation and serving; 0 is never a real code."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from ugt.model.config import ModelConfig
from ugt.model.inputs import (
    AGE_CODES,
    CONTEXT_CODES,
    EVENT_ATTRIBUTES,
    GAP_CODES,
    VALUE_CODES,
    Events,
    History,
    UserVocabulary,
    build_inputs,
    context_codes,
    event_inputs,
    gap_codes,
    value_codes,
)
from ugt.schema import UGTError

DAY = 86400


def test_gaps_double_per_code_and_unknown_is_zero() -> None:
    times = np.cumsum([10**9, 30, 60, 120, 240, DAY, 3 * 365 * DAY])
    assert gap_codes(times).tolist() == [0, 1, 2, 2, 3, 11, GAP_CODES - 1]
    assert gap_codes([0, 0, 10**9]).tolist() == [0, 0, 0]
    assert gap_codes([10**9, 10**9 - 5]).tolist() == [0, 1]  # a clock that runs back is no gap


def test_values_are_half_points_and_missing_is_zero() -> None:
    assert value_codes([0.5, 5.0, 10.0, 99.0, float("nan"), 0.0]).tolist() == [1, 10, 20, VALUE_CODES - 1, 0, 0]


def test_context_is_the_part_of_the_day_and_of_the_week() -> None:
    thursday = 0 * DAY + 7 * 3600
    assert context_codes([0, thursday, thursday + 2 * DAY, thursday + 3 * DAY + 12 * 3600]).tolist() == [0, 2, 6, 8]
    assert context_codes(np.arange(1, 14 * DAY, 3600)).max() == CONTEXT_CODES - 1


def test_user_attributes_not_seen_in_training_are_unknown() -> None:
    vocabulary = UserVocabulary.from_json(UserVocabulary.fit({"gender": ["M", None, "F"], "age": [None, 30, 5], "occupation": ["artist", None, ""]}).to_json())
    assert vocabulary.sizes == (3, AGE_CODES, 2)
    assert vocabulary.codes({"gender": "M", "age": 34, "occupation": "artist"}) == (2, 4, 1)
    assert vocabulary.codes({"gender": "X", "age": 190}) == (0, AGE_CODES - 1, 0)
    assert vocabulary.codes(None) == (0, 0, 0)


def test_a_batch_keeps_the_last_events_and_pads_on_the_right_with_zero() -> None:
    long = History([3, 4, 5, 6], [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], [100, 200, 300, 100_000])
    inputs = build_inputs([long, History([0], [1], [np.nan], [0]), History([], [], [], [])], [0, 0, 0], np.zeros((3, 3)), max_length=3)
    assert inputs["item_BL"].tolist() == [[5, 6, 7], [1, 0, 0], [0, 0, 0]]  # item 0 is row 1
    assert inputs["action_BL"].tolist() == [[2, 3, 4], [1, 0, 0], [0, 0, 0]]
    assert inputs["gap_BL"][0, 0] == 0  # what came before the window is unknown, as on a server that holds only the last events
    assert inputs["length_B"].tolist() == [3, 1, 0]


def test_padding_has_code_zero_in_every_attribute() -> None:
    zeros = np.zeros((2, 3), np.int64)
    inputs = event_inputs(Events(zeros, zeros, zeros * 0.0, zeros))
    assert set(inputs) == {"item_BL", *(f"{name}_BL" for name in EVENT_ATTRIBUTES)}
    assert not any(array.any() for array in inputs.values())


def test_an_attribute_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ValidationError, match="event_attributes has no weekday: there are action, value, gap"):
        ModelConfig(event_attributes=("action", "weekday"))
    with pytest.raises(ValidationError, match="user_attributes has no height: there are gender, age, occupation"):
        ModelConfig(user_attributes=("height",))


def test_a_user_attribute_whose_field_no_user_has_is_named() -> None:
    with pytest.raises(UGTError, match=r"no occupation \(occupation\), only gender, age"):
        UserVocabulary.fit({"gender": ["F"], "age": [30]})
