"""Held-out items through the whole insertion on a small world, without Ray: what is measured, what training saw, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from train import new_items, semantic_ids, word2vec
from ugt import histories, holdout
from ugt.artifacts import CREDITS, EVENTS, HISTORIES, ITEMS, PEOPLE, USERS, read_table, write_table
from ugt.autoencoder import finish, fit, open_inputs
from ugt.evaluation import EvaluationConfig
from ugt.feature_blocks import fit_vocabulary
from ugt.features import FeatureConfig, encode_features, rows_of, save_features
from ugt.fusion import AutoencoderConfig
from ugt.histories import HistoryConfig
from ugt.insertion import ESTIMATED
from ugt.model.config import DecodingConfig, ModelConfig
from ugt.model.inputs import UserVocabulary
from ugt.new_vectors import NewVectors
from ugt.schema import UGTError
from ugt.scoring import Ranking, new_model, save_checkpoint
from ugt.semantic_ids import SemanticIdConfig
from ugt.text import TextConfig
from ugt.word2vec import Word2VecConfig

SHARE = 0.2
IDS = SemanticIdConfig(estimate=True, cooccurrence_weight=2)
AUTOENCODER = AutoencoderConfig(width=8, hidden=32, epochs=6, batch_size=32)


class World:
    """The hand-made catalogue, where each user keeps to one genre, less a fifth of its items; an untrained model over the rest."""

    def __init__(self, catalogue: Path, root: Path, write_corpus: Callable[..., Path]):
        self.root = root
        rows = []
        for user in read_table(catalogue / "histories", HISTORIES).to_pylist():
            for place, i in enumerate(user["item_index"]):
                about = {"event_id": f"{user['user_id']}-{place}", "user_id": user["user_id"], "item_id": f"tt{i:04d}", "item_index": i}
                rows.append(about | {"action": "rate", "value": 4.0, "timestamp": place, "order": place})
        self.events = pa.Table.from_pylist(rows, EVENTS)
        items, credits = read_table(catalogue / "items", ITEMS), read_table(catalogue / "credits", CREDITS)
        parted, etl = holdout.part(items, credits, self.events, SHARE, 0), root / "etl"
        for name in ("items", "credits", "events"):
            write_table(getattr(parted, name), etl / name)
            write_table(getattr(parted, f"held_{name}"), etl / holdout.FOLDER / name)
        write_table(read_table(catalogue / "people", PEOPLE), etl / "people")
        names = sorted(set(self.events["user_id"].to_pylist()))
        write_table(pa.table({"user_id": names} | {n: pa.nulls(len(names), USERS.field(n).type) for n in USERS.names[1:]}, schema=USERS), etl / "users")
        write_table(histories.from_events(parted.events), root / "histories" / "histories")
        for name in ("features", "fusion", "word2vec", "semantic_ids"):
            (root / name).mkdir()
        vocabulary = fit_vocabulary(parted.items, parted.credits, FeatureConfig())
        save_features(sparse.csr_array(encode_features(rows_of(parted.items, parted.credits).to_pylist(), vocabulary)), root / "features")
        vocabulary.save(root / "features")
        inputs, blocks = open_inputs(root / "features", None)
        fit(inputs, blocks, AUTOENCODER, root / "state.pt", lambda _: None)
        fusion, fused_NW, _ = finish(inputs, blocks, AUTOENCODER, root / "state.pt")
        fusion.save(root / "fusion")
        np.save(root / "fusion" / "fused.npy", fused_NW)
        config = Word2VecConfig(width=8, cooccurrence_width=8, min_words=20_000)
        corpus = write_corpus(etl, root / "histories", config.families, root / "corpus")
        word2vec.run(etl, root / "histories", corpus, config, root / "word2vec")
        semantic_ids.run(etl, root / "fusion", root / "word2vec", IDS, root / "semantic_ids")
        model = new_model(ModelConfig(width=16, encoder_layers=1, cold_share=0.3), root / "semantic_ids", UserVocabulary())
        save_checkpoint(model, root / "checkpoint", Ranking())

    def run(self, out: Path, **changes: Any) -> dict[str, Any]:
        folders = {f"{n}_dir": self.root / n for n in ("etl", "histories", "features", "fusion", "word2vec", "semantic_ids", "checkpoint")}
        configs = {"semantic_ids": IDS, "text": TextConfig(), "config": EvaluationConfig(bootstrap_samples=50), "decoding": DecodingConfig(beam_width=60)}
        return new_items.run(**(folders | configs | {"text_dir": None, "out_dir": out} | changes))


@pytest.fixture(scope="module")
def world(catalogue: Path, write_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(catalogue, tmp_path_factory.mktemp("new_items"), write_corpus)


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report")
    headline = world.run(out)
    found = json.loads((out / "new_items.json").read_text())
    assert headline["unseen_recall@10"] == found["test"]["unseen"]["slot"]["recall@10"]
    return found


def test_users_whose_target_is_held_out_are_the_unseen_ones(world: World, report: dict[str, Any]) -> None:
    held = {f"tt{i:04d}" for i in holdout.choose(120, SHARE, 0).tolist()}
    last: dict[str, list[str]] = {}
    for event in world.events.to_pylist():
        last.setdefault(event["user_id"], []).append(event["item_id"])
    kept = {user: sum(item not in held for item in items) for user, items in last.items()}
    asked = [user for user in last if kept[user] >= 3]
    assert report["test"]["all"]["users"] == len(asked)
    assert report["test"]["unseen"]["users"] == sum(last[user][-1] in held for user in asked)
    assert report["validation"]["unseen"]["users"] == sum(last[user][-2] in held for user in asked)


def test_without_a_slot_no_new_item_is_found_and_with_one_more_than_by_chance(report: dict[str, Any]) -> None:
    unseen = report["test"]["unseen"]
    assert unseen["model"]["recall@10"] == 0
    assert unseen["nearest_slot"]["recall@10"] > 2 / 24  # 24 new items of 4 genres, and users who keep to one
    assert unseen["slot"]["recall@10"] > 2 / 24


def test_a_slot_costs_seen_targets_what_the_lists_say(report: dict[str, Any]) -> None:
    for part in ("validation", "test"):
        seen = report[part]["seen"]
        for name in ("nearest_slot", "slot", "gated_slot_points", "gated_slot"):
            lost = seen["model"]["recall@10"] - seen[name]["recall@10"]
            assert lost >= 0
            assert seen[name]["loss"]["points"] == pytest.approx(100 * lost)
            assert seen[name]["loss"]["relative"] == pytest.approx(lost / seen["model"]["recall@10"])
    assert report["validation"]["seen"]["gated_slot"]["loss"]["relative"] <= report["validation"]["seen"]["slot"]["loss"]["relative"]


def test_training_saw_only_what_it_may_of_every_user_that_is_judged(world: World) -> None:
    """The split of what the hold-out left cuts at other places; what it trains on must lie in the train part of the whole histories."""
    split = new_items.whole_split(world.root / "etl", HistoryConfig())
    reduced = HistoryConfig().apply(histories.load(world.root / "histories"))
    users_U = new_items.users_of(split, reduced)
    assert 0 < len(users_U) < len(split.histories)
    place = {user_id: u for u, user_id in enumerate(reduced.histories.user_ids)}
    old = reduced.histories.items.max() + 1
    for u in users_U:
        r = place[split.histories.user_ids[u]]
        trained = reduced.histories.items[reduced.histories.row(r)][: reduced.train_lengths[r]]
        allowed = split.histories.items[split.histories.row(u)][: split.train_lengths[u]]
        assert set(trained.tolist()) <= set(allowed.tolist())
        assert trained.max(initial=0) < old


def test_a_model_without_the_new_items_reads_histories_without_them(world: World) -> None:
    split = new_items.whole_split(world.root / "etl", HistoryConfig())
    for part in ("validation", "test"):
        less = new_items.without_items(split, 96, part)
        for u in split.users("test"):
            whole, seen = split.example(int(u), part), less.example(int(u), part)
            assert seen.items.tolist() == [i for i in whole.items.tolist() if i < 96]
            assert (seen.target, seen.target_timestamp) == (whole.target, whole.target_timestamp)


def test_an_items_estimated_vector_is_the_one_it_would_get_as_a_new_item(world: World) -> None:
    """Its own content and its neighbours' company, itself left out: nothing of its own company is in it."""
    vectors = NewVectors.load(IDS, world.root / "semantic_ids", world.root / "word2vec", None, world.root / "fusion")
    estimated_NV, true_NV = (np.load(world.root / "semantic_ids" / name) for name in (ESTIMATED, "item_vectors.npy"))
    for i in (3, 50):
        others = NewVectors(**{**vars(vectors), "collaborative": {name: x_NW.copy() for name, x_NW in vectors.collaborative.items()}})
        for x_NW in others.collaborative.values():
            x_NW[i] = 1e6
        assert np.allclose(others.of(None, vectors.content_NC[i : i + 1], without=np.array([i]))[0][0], estimated_NV[i], atol=1e-5)
    assert np.allclose(estimated_NV[:, :8], true_NV[:, :8], atol=1e-5)  # the fused part is its own
    assert not np.allclose(estimated_NV[:, 8:], true_NV[:, 8:], atol=0.1)


def test_a_run_without_what_it_needs_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(UGTError, match=r"Set etl\.hold_out"):
        world.run(tmp_path, etl_dir=tmp_path)
    with pytest.raises(UGTError, match="leave_one_out"):
        world.run(tmp_path, history=HistoryConfig(split="time"))
    with pytest.raises(UGTError, match=r"Set text\.enabled"):
        world.run(tmp_path, fusion_dir=None)
    assert not list(tmp_path.iterdir())


def test_a_model_that_trains_items_as_new_needs_their_estimated_vectors(world: World, tmp_path: Path) -> None:
    for path in (world.root / "semantic_ids").iterdir():
        if path.name != ESTIMATED:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UGTError, match=r"semantic_ids\.estimate"):
        new_model(ModelConfig(width=16, cold_share=0.1), tmp_path, UserVocabulary())
