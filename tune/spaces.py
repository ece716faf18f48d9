"""What a sweep may change: named dimensions over the fields of ModelConfig and TrainingConfig, checked before the first trial.

A dimension's name is the path of a field, `model.width` or `training.stage1.learning_rate`. A space can be written in YAML:

    model.width: {values: [64, 128]}
    training.stage1.learning_rate: {low: 5.0e-4, high: 5.0e-3, log: true}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from ugt.model.config import ModelConfig, TrainingConfig
from ugt.schema import Config, UGTError

Value = bool | int | float | str


class Choice(Config):
    """One of a few values."""

    values: tuple[Value, ...] = Field(min_length=1)

    def ends(self) -> tuple[Value, ...]:
        return self.values


class Range(Config):
    """Anything from `low` to `high`, both included for integers; `log` draws the exponent evenly."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low above 0, not {self.low}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("an integer range needs whole numbers as its ends")
        return self

    def ends(self) -> tuple[Value, ...]:
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


Space = dict[str, Choice | Range]

# the leads of the early experiments: what moved NDCG most at the CPU size
RECOMMENDED: Space = {
    "model.width": Choice(values=(64, 96, 128)),
    "model.encoder_dropout": Range(low=0.1, high=0.4),
    "model.decoder_dropout": Range(low=0.05, high=0.2),
    "training.stage1.learning_rate": Range(low=5e-4, high=5e-3, log=True),
    "training.weight_decay": Choice(values=(0.0, 0.01, 0.05)),
    "training.dense_negatives": Choice(values=(256, 512, 1024)),
}


def parse(raw: Mapping[str, Any]) -> Space:
    """A space from a mapping (YAML). Raises UGTError naming the dimension that is wrong."""
    space: Space = {}
    for name, dimension in raw.items():
        kind: type[Choice | Range] = Choice if isinstance(dimension, Mapping) and "values" in dimension else Range
        try:
            space[name] = kind.model_validate(dimension)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(x) for x in problem["loc"])
            way_out = "Write {values: [...]} or {low: ..., high: ..., log: true, integer: true}."
            raise UGTError(f"search space, {name}{'.' + field if field else ''}: {problem['msg']}. {way_out}") from error
    check(space, ModelConfig(), TrainingConfig())
    return space


def check(space: Space, model: ModelConfig, training: TrainingConfig) -> None:
    """Every name is a field and every end of its dimension a valid value for it, beside the given configs. Raises UGTError if not."""
    if not space:
        raise UGTError("the search space is empty: name at least one field to search, like model.width.")
    for name, dimension in space.items():
        for value in dimension.ends():
            apply({name: value}, model, training)


def apply(values: Mapping[str, Value], model: ModelConfig, training: TrainingConfig) -> tuple[ModelConfig, TrainingConfig]:
    """The configs with these fields changed, validated. Raises UGTError naming a field that doesn't exist or a value it refuses."""
    raw: dict[str, Any] = {"model": model.model_dump(), "training": training.model_dump()}
    for name, value in values.items():
        *parents, field = name.split(".")
        place = raw
        for parent in parents:
            place = place.get(parent, {}) if isinstance(place, dict) else {}
        if not parents or not isinstance(place, dict) or field not in place or isinstance(place[field], dict):
            raise UGTError(f"search space: there is no setting {name}. Names look like model.width or training.stage1.learning_rate.")
        place[field] = value
    try:
        return ModelConfig.model_validate(raw["model"]), TrainingConfig.model_validate(raw["training"])
    except ValidationError as error:
        problem = error.errors()[0]
        changed = ", ".join(f"{k} = {v}" for k, v in values.items())
        raise UGTError(f"search space: {changed} is refused: {problem['msg']}. Change the values of that dimension.") from error
