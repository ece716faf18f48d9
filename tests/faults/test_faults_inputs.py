"""Fault 4 of the prior system: training, evaluation and serving build the inputs of one and the same moment, and mix the heads, each in its own way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.feature_store import _user_rows
from serve.generator import Generated
from serve.recommender import HISTORY, Loaded, Recommender, Request, fused, recalled
from serve.retriever import Candidates
from serve.versions import VersionSource
from train.windows import TrainingWindows
from ugt.api import RecommendRequest, RequestContext
from ugt.filters import Filters
from ugt.histories import Histories
from ugt.memory import Memory
from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.ranking import Candidates as Proposed
from ugt.ranking import Fusion, dense_candidates, page, proposals
from ugt.runtime import CARD, GenerationRequest, Generator
from ugt.schema import ACTION_IDS, User
from ugt.settings import StoresConfig
from ugt.stores.features import HISTORY_LIMIT, UserState, pack, unpack

ITEMS, MAX_LENGTH = 40, 8
PEOPLE = {"u0": User(user_id="u0", gender="F", age=34, occupation="writer"), "u1": User(user_id="u1", gender="X", age=None), "u2": User(user_id="u2")}
VOCABULARY = UserVocabulary(["F", "M"], ["writer"])
LENGTHS = (3, 9, 30)  # shorter than the window, one event more than it, cut


@pytest.fixture
def histories() -> Histories:
    """Every kind of event: all actions, values and none, ties of time, pauses of seconds and of years, an unknown time."""
    rng, n = np.random.default_rng(0), sum(LENGTHS)
    values = np.where(rng.random(n) < 0.3, np.nan, rng.integers(1, 11, n) / 2).astype(np.float32)
    times = 1_500_000_000 + np.cumsum(rng.choice([0, 1, 50, 7_000, 90_000, 40_000_000], n))
    times[5] = 0
    actions = rng.choice(list(ACTION_IDS.values()), n).astype(np.int32)
    return Histories(list(PEOPLE), np.concatenate([[0], np.cumsum(LENGTHS)]), rng.integers(0, ITEMS, n).astype(np.int32), actions, values, times)


def served(histories: Histories, user: int, now: int) -> dict[str, np.ndarray]:
    """The arrays the exported graph gets: tables -> Redis -> Recommender -> Generator, without the servers between."""
    item_ids = [f"tt{i:02d}" for i in range(ITEMS)]
    rows = {profile.user_id: events for profile, events in _user_rows(histories, PEOPLE, item_ids)}
    events = [unpack(pack(e)) for e in rows[histories.user_ids[user]][:-1]]  # the last event hasn't happened yet
    state = UserState(histories.user_ids[user], PEOPLE[histories.user_ids[user]], events[-HISTORY:])
    catalogue = SimpleNamespace(index={item_id: i for i, item_id in enumerate(item_ids)})
    body = RecommendRequest(user_id=state.user_id, context=RequestContext(timestamp=now))
    loaded = Loaded("v0001-00000000", catalogue, Fusion(), None, HISTORY)  # type: ignore[arg-type]
    request = Request(body, "trace", loaded, state, [catalogue.index[e.item_id] for e in state.history], [], ((), ()))
    g = Recommender.func_or_class._generation(SimpleNamespace(), request)
    runtime = object.__new__(Generator)  # its inputs need sizes and a vocabulary, no graph
    runtime.vocabulary, runtime.max_length = VOCABULARY, MAX_LENGTH
    one_group = {"slot_item_S": np.arange(ITEMS), "item_group_N": np.zeros(ITEMS, np.int64), "group_count_G": np.array([ITEMS])}
    runtime.tables = one_group | {"first_KD": np.zeros((1, 1))}
    runtime._filters = Filters(runtime.tables, 1)
    return runtime.inputs([GenerationRequest(g.items, g.actions, g.values, g.timestamps, g.now, g.user)])


@pytest.mark.parametrize("user", range(len(LENGTHS)))
def test_fault_4_one_moment_has_one_set_of_inputs_in_training_evaluation_and_serving(histories: Histories, user: int) -> None:
    codes_UA = np.array([VOCABULARY.codes(p.model_dump()) for p in PEOPLE.values()])
    example = histories.split().example(user, "test")
    evaluated = build_inputs([History(*example[:4])], [example.target_timestamp], codes_UA[[user]], MAX_LENGTH)

    online = served(histories, user, example.target_timestamp)
    for name, array in evaluated.items():
        assert online[name].tolist() == array.tolist(), name

    # training: nobody is held out, so the window that ends with the user's last event has the same target
    windows = TrainingWindows(histories.split(1000), codes_UA, MAX_LENGTH, 0.5, 1, 0)
    (last,) = [w for step in windows.epoch(0) for w in step if w.user == user and w.end == LENGTHS[user]]
    trained = windows.batch([last]).inputs
    place = last.end - 1 - last.first
    assert trained["target_BQ"][0, place] == example.target + 1
    assert trained["position_BQ"][0, place] == evaluated["length_B"][0]  # the state that is asked is the one after the last event read
    assert trained["context_BQ"][0, place] == evaluated["context_B"][0]
    for name in ("item_BL", "action_BL", "value_BL", "gap_BL", "user_BU"):
        assert trained[name].tolist() == evaluated[name].tolist(), name


def test_fault_4_the_store_and_the_server_read_as_far_back_as_the_model(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(json.dumps({"config": {"max_length": 700}}))
    source = VersionSource("ugt", "", StoresConfig(), tmp_path)
    recommender = SimpleNamespace(
        _source=SimpleNamespace(folder=lambda v: tmp_path, catalogue=lambda f: None, fusion=lambda f: (Fusion(), None), max_length=source.max_length)
    )
    recommender._metrics = SimpleNamespace(version=SimpleNamespace(set=lambda *a, **k: None))
    Recommender.func_or_class.reconfigure(recommender, {"version": "v"})
    assert recommender._loaded.events_read == 700
    assert HISTORY_LIMIT >= 700


@pytest.mark.parametrize("strategy", ["beam", "diverse_beam", "nucleus"])
@pytest.mark.parametrize("method", ["log_probability", "reciprocal_rank"])
@pytest.mark.parametrize("size", [10, 50])
@pytest.mark.parametrize("remembers", [0.0, 0.6])
def test_fault_4_the_server_mixes_the_heads_as_evaluation_does(method: Any, size: int, strategy: Any, remembers: float) -> None:
    """Evaluation fuses a beam of 50 with the dense head's best 50 and what memory proposes; the server's retriever gives 500."""
    rng = np.random.default_rng(1)
    fusion = Fusion(method, 0.4, remembers, remembers)
    lists_LE = rng.integers(0, 900, (400, 5))
    memory = Memory.fit(np.repeat(np.arange(400), 5), lists_LE.ravel(), rng.normal(size=(900, 6)).astype(np.float32))
    for _ in range(20):
        dense_N, user_D = rng.normal(size=(900, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
        beam = rng.choice(900, 50, replace=False)
        log_probs = -np.sort(rng.exponential(3, 50)).astype(np.float32)
        recall = memory.recall(rng.choice(900, 8))
        proposed = proposals(recall)
        of_beam, of_proposed = dense_N[beam] @ user_D, dense_N[proposed] @ user_D
        given = Proposed(beam, log_probs, of_beam, *dense_candidates(user_D, dense_N, 50), recall, proposed, of_proposed)
        wanted = page(strategy, given, fusion, size)
        found = Candidates(*dense_candidates(user_D, dense_N, 500), np.concatenate([of_beam, of_proposed]))
        items, scores = fused(Generated(beam, log_probs, user_D, 0.0, strategy), found, recall, proposed, fusion, size)
        assert items.tolist() == wanted[0].tolist()
        assert scores.tolist() == wanted[1].tolist()


def test_fault_4_memory_proposes_only_what_a_request_may_get() -> None:
    """Excluded and filtered items are out before the best are taken, so that a page is as full as the catalogue allows."""
    lists_LE = np.random.default_rng(0).integers(0, 60, (300, 5))
    memory = Memory.fit(np.repeat(np.arange(300), 5), lists_LE.ravel(), np.zeros((60, 0), np.float32))
    catalogue = SimpleNamespace(fits=lambda i, types, categories: (not types or i % 2 == 0) and (not categories or i % 3 == 0))
    every = set(memory.recall([1, 2, 3]).items_F.tolist())
    for key, passing in ((((), ()), every), ((("movie",), ()), {i for i in every if i % 2 == 0}), ((("movie",), ("drama",)), {i for i in every if i % 6 == 0})):
        loaded = Loaded("v", catalogue, Fusion(followed=1.0), memory, HISTORY)  # type: ignore[arg-type]
        request = Request(RecommendRequest(user_id="u"), "trace", loaded, UserState("u", None), [1, 2, 3], [1, 2, 3, 6, 12], key)
        found = recalled(request)
        assert found is not None
        assert found.items_F.tolist() == sorted(passing - {6, 12})
    without = Loaded("v", catalogue, Fusion(), None, HISTORY)  # type: ignore[arg-type]
    assert recalled(Request(RecommendRequest(user_id="u"), "trace", without, UserState("u", None), [1], [1], ((), ()))) is None
