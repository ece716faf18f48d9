"""Options of the model reach the exported graph: an attribute that is plugged in is trained, exported and served, the HSTU block is exported as it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.graph import table_arrays, write_graph
from train.stages import StageObjective
from train.windows import TrainingWindows
from ugt import runtime
from ugt.histories import Histories
from ugt.model.config import DecodingConfig, ModelConfig, StageConfig, TrainingConfig
from ugt.model.inputs import EVENT_ATTRIBUTES, USER_ATTRIBUTES, Events, History, IntArray, UserVocabulary
from ugt.model.ugt import UGT
from ugt.runtime import GenerationRequest, Generator
from ugt.scoring import decode, tensors
from ugt.semantic_ids import SemanticIds

ITEMS, USERS, EVENTS, DAY = 60, 5, 8, 86400
PEOPLE = {"gender": ["F", "M", None, "F", "F"], "age": [9, 30, None, 55, 17], "occupation": ["artist"] * USERS}


class Weekday:
    size = 8  # 0 unknown

    def codes(self, events: Events) -> IntArray:
        return np.where(events.timestamp > 0, 1 + events.timestamp // DAY % 7, 0)


class Adult:
    field = "age"

    def vocabulary(self, values: Sequence[Any]) -> list[str]:
        return []

    def size(self, vocabulary: Collection[str]) -> int:
        return 3

    def code(self, value: Any, rank: Mapping[str, int]) -> int:
        return 0 if value is None else 1 + (value >= 18)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENT_ATTRIBUTES, "weekday", Weekday())
    monkeypatch.setitem(USER_ATTRIBUTES, "adult", Adult())


def make_model(config: ModelConfig) -> UGT:
    torch.manual_seed(0)
    ids = SemanticIds.from_codes(np.array([(i % 4, i // 4 % 4, i // 16) for i in range(ITEMS)]), [f"i{i:02d}" for i in range(ITEMS)], 4, 4, 8)
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32)
    return UGT(config, ids, vectors, UserVocabulary.fit(PEOPLE, config.user_attributes)).eval()


def windows(model: UGT) -> TrainingWindows:
    rng = np.random.default_rng(1)
    items = rng.integers(0, ITEMS, USERS * EVENTS).astype(np.int32)
    values, times = np.full(len(items), 4, np.float32), 10**9 + np.cumsum(rng.integers(0, 3 * DAY, len(items)))
    histories = Histories([f"u{i}" for i in range(USERS)], np.arange(0, len(items) + 1, EVENTS), items, np.full_like(items, 9), values, times)
    people = [dict(zip(PEOPLE, row, strict=True)) for row in zip(*PEOPLE.values(), strict=True)]
    return TrainingWindows(histories.split(), np.array([model.vocabulary.codes(p) for p in people]), model.config.max_length, 0.5, USERS, 0)


def exported(model: UGT, folder: Path) -> Generator:
    """The beam's graph, under the name of every strategy: only the beam is asked for."""
    for name in runtime.GRAPHS.values():
        if not (folder / runtime.GRAPH).exists():
            write_graph(model, folder / runtime.GRAPH)
        (folder / name).write_bytes((folder / runtime.GRAPH).read_bytes())
    tables = table_arrays(model)
    np.savez(folder / runtime.TABLES, **tables)
    np.save(folder / runtime.VECTORS, tables["item_ID"][1:])
    (folder / runtime.CARD).write_text(json.dumps({"config": model.config.model_dump(), "vocabulary": model.vocabulary.to_json()}))
    return Generator(folder)


def requests(rng: np.random.Generator, lengths: list[int]) -> list[GenerationRequest]:
    made = []
    for n in lengths:
        times = 10**9 + np.cumsum(rng.integers(0, 20 * DAY, n))
        made.append(GenerationRequest(rng.integers(0, ITEMS, n), [9] * n, [4.0] * n, times, 1_700_000_000, {"gender": "F", "age": 18}, beam_width=10))
    return made


def agree(model: UGT, generator: Generator, asked: list[GenerationRequest]) -> None:
    histories = [History(r.items, r.actions, r.values, r.timestamps) for r in asked]
    codes = np.array([model.vocabulary.codes(r.user) for r in asked])
    beams = decode(model, histories, [r.now for r in asked], codes, [np.empty(0, np.int64)] * len(asked), DecodingConfig(beam_width=10))
    for row, result in enumerate(generator.recommend(asked)):
        assert result.item_indices.tolist() == beams.item_BW[row].tolist()
        assert np.abs(result.log_probs - beams.log_prob_BW[row].numpy()).max() < 1e-4  # the same sums in another order
        assert np.allclose(result.user_vector, beams.user_BD[row], atol=1e-4)


@pytest.mark.usefixtures("plugged")
def test_an_attribute_that_is_plugged_in_is_trained_exported_and_served(tmp_path: Path) -> None:
    config = ModelConfig(
        width=16, max_length=6, event_attributes=("action", "value", "gap", "weekday"), user_attributes=("gender", "age", "occupation", "adult")
    )
    model = make_model(config)
    data = windows(model)
    inputs = data.batch(data.epoch(0)[0]).inputs
    assert set(np.unique(inputs["weekday_BL"][inputs["item_BL"] > 0])) <= set(range(1, 8))
    assert sorted(set(inputs["user_BU"][:, 3].tolist())) == [0, 1, 2]

    StageObjective(model, StageConfig(), TrainingConfig(dense_negatives=8), torch.ones(ITEMS)).train()(tensors(inputs))["loss"].backward()
    tables = (model.history.weekday, model.history.user[3])
    assert all(table.weight.grad.abs().sum() > 0 for table in tables)
    for table in tables:  # as far from the start as training takes it: what one day changes must show
        torch.nn.init.normal_(table.weight, std=2.0)
    model.settle_unread(data.codes_read())
    assert torch.allclose(model.history.weekday.weight[0], model.history.weekday.weight[1:].mean(0), atol=1e-5)  # no event without a day was read

    generator, asked = exported(model.eval(), tmp_path), requests(np.random.default_rng(2), [0, 3, 11])
    assert generator.vocabulary.sizes == model.vocabulary.sizes == (3, 12, 2, 3)
    agree(model, generator, asked)
    (plain,) = generator.recommend([asked[1]])
    for changed in ({"timestamps": asked[1].timestamps + DAY}, {"user": {"gender": "F", "age": 17}}):  # the same gaps, the same decade
        (moved,) = generator.recommend([GenerationRequest(**(vars(asked[1]) | changed))])
        assert not np.allclose(moved.user_vector, plain.user_vector, atol=1e-3)


@pytest.mark.usefixtures("plugged")
def test_a_model_of_before_an_attribute_was_plugged_in_answers_as_before(tmp_path: Path) -> None:
    model = make_model(ModelConfig(width=16, max_length=6))
    vocabulary = UserVocabulary.from_json({"genders": ["F", "M"], "occupations": ["artist"]})  # as cards were written before there was a registry
    assert vocabulary.to_json() == model.vocabulary.to_json() == UserVocabulary(["F", "M"], ["artist"]).to_json()
    assert set(model.history.state_dict()) == {
        *(f"{name}.weight" for name in ("action", "value", "gap", "position", "token_type")),
        *(f"user.{i}.weight" for i in range(3)),
    }
    data = windows(model)
    model.settle_unread(data.codes_read())  # codes of an attribute that this model lacks are none of its business
    agree(model, exported(model, tmp_path), requests(np.random.default_rng(2), [2, 7]))


def test_the_hstu_block_is_exported_as_it_is(tmp_path: Path) -> None:
    model = make_model(ModelConfig(width=16, max_length=40, encoder_block="hstu"))
    for block in model.encoder.blocks:
        torch.nn.init.normal_(block.time.weight)
    generator = exported(model, tmp_path)
    for lengths in ([0], [1, 60, 9], [40, 0, 3, 17]):
        agree(model, generator, requests(np.random.default_rng(len(lengths)), lengths))
