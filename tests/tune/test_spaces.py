"""Search spaces name real settings, and say so when they don't."""

from __future__ import annotations

import pytest

from tune import spaces
from ugt.model.config import ModelConfig, TrainingConfig
from ugt.schema import UGTError


def test_the_recommended_space_fits_the_configs() -> None:
    spaces.check(spaces.RECOMMENDED, ModelConfig(), TrainingConfig())


def test_values_reach_nested_fields_and_nothing_else() -> None:
    model, training = spaces.apply({"model.width": 96, "training.stage1.learning_rate": 0.003}, ModelConfig(), TrainingConfig())
    assert model == ModelConfig(width=96)
    assert training.stage1.learning_rate == 0.003
    assert training.model_copy(update={"stage1": TrainingConfig().stage1}) == TrainingConfig()


def test_a_space_is_read_from_a_mapping() -> None:
    space = spaces.parse({"model.width": {"values": [64, 128]}, "model.experts": {"low": 2, "high": 8, "integer": True, "log": True}})
    assert space == {"model.width": spaces.Choice(values=(64, 128)), "model.experts": spaces.Range(low=2, high=8, integer=True, log=True)}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model.widht": {"values": [64]}}, "no setting model.widht"),
        ({"model": {"values": [64]}}, "no setting model"),
        ({"training.stage1": {"values": [1]}}, "no setting training.stage1"),
        ({"training.stage1.epochs.more": {"values": [1]}}, "no setting"),
        ({"model.width": {"values": []}}, "model.width.values"),
        ({"model.width": {"low": 64}}, "model.width.high"),
        ({"model.width": 64}, "model.width"),
        ({"model.width": {"low": 2, "high": 1}}, "not below"),
        ({"training.weight_decay": {"low": 0, "high": 1, "log": True}}, "log range"),
        ({"model.width": {"values": [64, 65]}}, "model.width = 65 is refused"),
        ({}, "empty"),
    ],
)
def test_a_wrong_space_is_one_clear_message(raw: dict, message: str) -> None:
    with pytest.raises(UGTError, match=message):
        spaces.parse(raw)
