"""The exported graph in ONNX Runtime: the same answers as PyTorch, constraints and catalogue as inputs, and no torch in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from train.graph import table_arrays, write_graphs
from ugt import runtime
from ugt.decoding import constraints
from ugt.model.config import DecodingConfig, ModelConfig
from ugt.model.inputs import History, UserVocabulary
from ugt.model.ugt import UGT
from ugt.runtime import STRATEGIES, GenerationRequest, Generator
from ugt.schema import DecodingStrategy, UGTError
from ugt.scoring import decode
from ugt.semantic_ids import SemanticIds

ITEMS, K = 80, 5


def make_model() -> UGT:
    torch.manual_seed(0)
    codes = np.array([(i % K, i // K % 4, i // (4 * K)) for i in range(ITEMS)])
    ids = SemanticIds.from_codes(codes, [f"i{i:03d}" for i in range(ITEMS)], K, K, 8)
    return UGT(
        ModelConfig(width=16, max_length=9), ids, np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32), UserVocabulary(["F", "M"], [])
    ).eval()


def write_version(model: UGT, folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_graphs(model, folder)
    tables = table_arrays(model)
    np.savez(folder / runtime.TABLES, **tables)
    np.save(folder / runtime.VECTORS, tables["item_ID"][1:])
    card = {"config": model.config.model_dump(), "vocabulary": model.vocabulary.to_json()}
    (folder / runtime.CARD).write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def model() -> UGT:
    return make_model()


@pytest.fixture(scope="module")
def version(model: UGT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_version(model, tmp_path_factory.mktemp("runtime") / "v1")


@pytest.fixture(scope="module")
def generator(version: Path) -> Generator:
    return Generator(version)


def request(rng: np.random.Generator, events: int, **more) -> GenerationRequest:
    items = rng.integers(0, ITEMS, events).tolist()
    return GenerationRequest(items, [10] * events, [4.0] * events, list(range(10**9, 10**9 + events)), 1_700_000_000, exclude=items, **more)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lengths", [[0], [1, 30], [4, 9, 2, 7, 0]])
def test_onnx_and_pytorch_give_the_same_items_and_scores(model: UGT, generator: Generator, lengths: list[int], strategy: DecodingStrategy) -> None:
    rng, decoding = np.random.default_rng(3), DecodingConfig(strategy=strategy, beam_width=23, diversity_penalty=0.4, temperature=1.3, top_p=0.8)
    requests = [request(rng, n, user={"gender": "M", "age": 30}, seed=row, **dict(decoding)) for row, n in enumerate(lengths)]
    codes = np.array([model.vocabulary.codes(r.user) for r in requests])
    histories = [History(r.items, r.actions, r.values, r.timestamps) for r in requests]
    beams = decode(model, histories, [r.now for r in requests], codes, [np.unique(r.exclude).astype(int) for r in requests], decoding)
    for row, result in enumerate(generator.recommend(requests)):
        live = beams.item_BW[row] >= 0
        assert result.item_indices.tolist() == beams.item_BW[row][live].tolist()
        assert np.abs(result.log_probs - beams.log_prob_BW[row][live].numpy()).max() < 1e-4
        assert np.allclose(result.user_vector, beams.user_BD[row], atol=1e-4)
        assert [tuple(c) for c in result.codes] == [model.semantic_ids.code_of(i) for i in result.item_indices.tolist()]


def test_each_request_of_a_batch_keeps_its_own_filter_exclusions_and_width(generator: Generator) -> None:
    rng = np.random.default_rng(4)
    third = np.arange(ITEMS) % 3 == 0
    requests = [
        request(rng, 5, beam_width=7),
        request(rng, 5, allowed=third, beam_width=40),
        request(rng, 5, allowed=~third),
        request(rng, 3, allowed=third.copy()),
    ]
    results = generator.recommend(requests)
    assert len(results[0].item_indices) == 7
    for r, result in zip(requests, results, strict=True):
        assert not set(result.item_indices.tolist()) & set(r.exclude)
        assert len(set(result.item_indices.tolist())) == len(result.item_indices)
        if r.allowed is not None:
            assert r.allowed[result.item_indices].all()
    assert set(results[1].item_indices.tolist()) == set(np.flatnonzero(third).tolist()) - set(requests[1].exclude)  # all that are legal


def test_requests_of_a_batch_may_be_decoded_by_different_strategies_and_none_changes_another(generator: Generator) -> None:
    rng = np.random.default_rng(8)
    requests = [request(rng, int(rng.integers(0, 9)), strategy=s, seed=i, beam_width=12) for i, s in enumerate(STRATEGIES * 3)]
    for alone, together in zip((generator.recommend([r])[0] for r in requests), generator.recommend(requests), strict=True):
        assert alone.item_indices.tolist() == together.item_indices.tolist()
        assert np.allclose(alone.log_probs, together.log_probs, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_filters_exclusions_and_priors_leave_only_legal_items_and_all_of_them_where_they_are_few(generator: Generator, strategy) -> None:
    rng = np.random.default_rng(9)
    for _ in range(30):
        requests = []
        for _ in range(int(rng.integers(1, 5))):
            allowed = rng.random(ITEMS) < rng.choice([0.03, 0.2, 1.0])
            knobs = {"diversity_penalty": rng.choice([0, 1, 50]), "temperature": rng.choice([0.1, 1, 4]), "top_p": rng.choice([0, 0.5, 1])}
            prior = rng.normal(0, 8, K).astype(np.float32) if rng.random() < 0.5 else None
            width, seed = int(rng.choice([1, 9, 90])), int(rng.integers(2**62))
            requests.append(request(rng, int(rng.integers(0, 60)), allowed=allowed, prior=prior, beam_width=width, seed=seed, strategy=strategy, **knobs))
        for r, result in zip(requests, generator.recommend(requests), strict=True):
            legal = set(np.flatnonzero(r.allowed).tolist()) - set(r.exclude)
            listed = result.item_indices.tolist()
            assert set(listed) <= legal
            assert len(set(listed)) == len(listed) == min(r.beam_width, len(legal))
            assert (result.reason is None) == (len(listed) == r.beam_width)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_answer_with_the_reason_where_nothing_is_legal(generator: Generator, strategy: DecodingStrategy) -> None:
    (result,) = generator.recommend([request(np.random.default_rng(5), 4, allowed=np.zeros(ITEMS, bool), strategy=strategy)])
    assert result.item_indices.tolist() == []
    assert result.codes.shape == (0, 3)
    assert result.reason == "0 of 50 items: 0 of 80 items pass the filter, 0 of them are excluded"
    (result,) = generator.recommend([GenerationRequest([], [], [], [], 0, exclude=[1, 3, 4], allowed=np.arange(ITEMS) < 4, strategy=strategy)])
    assert sorted(result.item_indices.tolist()) == [0, 2]
    assert result.reason == "2 of 50 items: 4 of 80 items pass the filter, 2 of them are excluded"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_prior_on_level_one_reaches_every_strategy(generator: Generator, strategy: DecodingStrategy) -> None:
    prior = np.full(K, -20.0, np.float32)
    prior[3] = 20.0
    (result,) = generator.recommend([GenerationRequest([], [], [], [], 0, prior=prior, beam_width=10, strategy=strategy)])
    assert (result.codes[:, 0] == 3).all()


def test_nucleus_is_drawn_anew_with_each_seed_and_the_knobs_reach_the_graphs(generator: Generator) -> None:
    def items(**more) -> list[int]:
        return generator.recommend([GenerationRequest([3, 9], [1, 1], [4.0, 4.0], [0, 0], 0, **more)])[0].item_indices.tolist()

    nucleus = [items(strategy="nucleus", seed=seed, top_p=1.0, beam_width=8) for seed in (1, 1, 2)]
    assert nucleus[0] == nucleus[1] != nucleus[2]
    greedy = [items(strategy="nucleus", seed=seed, top_p=0.0)[0] for seed in range(5)]
    assert len(set(greedy)) == 1
    cold = [items(strategy="nucleus", seed=seed, top_p=1.0, temperature=0.05)[0] for seed in range(5)]
    hot = [items(strategy="nucleus", seed=seed, top_p=1.0, temperature=50.0)[0] for seed in range(5)]
    assert len(set(cold)) < len(set(hot))
    assert items(strategy="diverse_beam", diversity_penalty=0.0) == items()
    assert {i % K for i in items(strategy="diverse_beam", diversity_penalty=100.0)[:K]} == set(range(K))  # one of each L1


def test_an_item_added_to_the_tables_comes_out_of_the_same_graph(model: UGT, version: Path, tmp_path: Path) -> None:
    """Catalogue as input: a new item is rows in arrays, not a new export."""
    with np.load(version / runtime.TABLES) as tables:
        grown = {name: tables[name] for name in tables.files}
    group = int(model.items.group_N[7])
    slot = int(grown["group_start_G"][group] + grown["group_count_G"][group])
    assert grown["slot_item_S"][slot] == -1  # a spare slot
    grown["slot_item_S"][slot] = ITEMS
    grown["group_count_G"][group] += 1
    grown["item_slot_N"] = np.append(grown["item_slot_N"], slot)
    grown["item_group_N"] = np.append(grown["item_group_N"], group)
    grown["item_ID"] = np.concatenate([grown["item_ID"], grown["item_ID"][[8]]])  # the twin of item 7
    for name in (*runtime.GRAPHS.values(), runtime.CARD):
        (tmp_path / name).write_bytes((version / name).read_bytes())
    np.savez(tmp_path / runtime.TABLES, **grown)
    np.save(tmp_path / runtime.VECTORS, grown["item_ID"][1:])
    for result in Generator(tmp_path).recommend([GenerationRequest([7], [1], [5.0], [0], 0, beam_width=ITEMS + 1, strategy=s) for s in STRATEGIES]):
        score = dict(zip(result.item_indices.tolist(), result.log_probs.tolist(), strict=True))
        assert len(score) == ITEMS + 1
        assert score[ITEMS] == pytest.approx(score[7], abs=1e-5)


def test_what_can_not_be_answered_is_said(generator: Generator, tmp_path: Path) -> None:
    ask = GenerationRequest([], [], [], [], 0)
    for broken, words in (
        ({"items": [ITEMS], "actions": [1], "values": [1.0], "timestamps": [0]}, "outside 0..79"),
        ({"items": [1]}, "differ in length"),
        ({"exclude": [-1]}, "exclude names an item"),
        ({"allowed": np.ones(3, bool)}, "3 entries for 80 items"),
        ({"beam_width": 0}, "beam_width 0"),
        ({"strategy": "sampling"}, "no decoding strategy 'sampling'"),
        ({"temperature": 0.0}, "temperature 0.0 is not possible"),
        ({"top_p": 1.5}, "top_p 1.5 is not possible"),
        ({"diversity_penalty": -1.0}, "diversity_penalty -1.0 is not possible"),
        ({"seed": -1}, "seed -1 is not possible"),
        ({"prior": np.zeros(3, np.float32)}, "prior must be 5 finite numbers"),
    ):
        with pytest.raises(UGTError, match=words):
            generator.recommend([GenerationRequest(**(vars(ask) | broken))])
    with pytest.raises(UGTError, match=r"decode.onnx, decode_diverse_beam.onnx, decode_nucleus.onnx, tables.npz, item_vectors.npy, card.json missing"):
        Generator(tmp_path)


def test_a_replica_answers_without_torch(version: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ugt.runtime import Generator, GenerationRequest as R;"
        f"print(len(Generator(Path({str(version)!r})).recommend([R([1], [1], [4.0], [0], 0)])[0].item_indices), 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["50", "False"]


def test_constraints_in_pytorch_and_in_the_runtime_are_the_same_arrays(model: UGT, generator: Generator) -> None:
    allowed = np.arange(ITEMS) % 4 > 0
    arrays = generator.inputs([GenerationRequest([], [], [], [], 0, exclude=[5, 9, 5], allowed=allowed)])
    limits = constraints(model, [[5, 9]], allowed)
    for name in set(limits._fields) - {"read_BL"}:  # the graph takes that from the history itself
        assert np.array_equal(arrays[name], getattr(limits, name).numpy()), name
