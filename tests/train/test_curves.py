"""Accuracy-diversity curves on a small world: every point can be recomputed, the beam is where every curve meets, equal seeds give equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from train import curves
from ugt import histories as history_files
from ugt.artifacts import HISTORIES, USERS, write_table
from ugt.memory import Memory
from ugt.model.config import CurvesConfig, DecodingConfig, ModelConfig
from ugt.model.inputs import UserVocabulary
from ugt.ranking import Fusion
from ugt.schema import UGTError
from ugt.scoring import Ranking, load_checkpoint, load_ranking, new_model, rank_users, save_checkpoint
from ugt.semantic_ids import SemanticIds

ITEMS, PEOPLE = 60, 40
CONFIG = CurvesConfig(users=30, diversity_penalty=(0.0, 5.0), temperature=(1.0, 2.0), top_p=(0.0, 1.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of `run`: 40 users, of whom one is too short to be evaluated, and an untrained checkpoint that prefers some items."""
    import torch

    root, rng = tmp_path_factory.mktemp("curves"), np.random.default_rng(0)
    lists = [rng.choice(ITEMS, int(rng.integers(3, 15)), replace=False).tolist() for _ in range(PEOPLE - 1)] + [[1, 2]]
    users = [f"u{i:03d}" for i in range(PEOPLE)]
    columns = [users, lists, [[1] * len(x) for x in lists], [[4.0] * len(x) for x in lists], [list(range(1_000, 1_000 + len(x))) for x in lists]]
    write_table(pa.Table.from_arrays([pa.array(c, t) for c, t in zip(columns, HISTORIES.types, strict=True)], schema=HISTORIES), root / "histories")
    write_table(pa.table({"user_id": users, **{n: [None] * PEOPLE for n in ("gender", "age", "occupation")}}, schema=USERS), root / "users")
    codes = np.array([(i % 5, i // 5 % 4, i // 20) for i in range(ITEMS)])
    (root / "semantic_ids").mkdir()
    SemanticIds.from_codes(codes, [f"tt{i:03d}" for i in range(ITEMS)], 5, 4, 4).save(root / "semantic_ids")
    # items of one L1 lie together, so that a list over many L1 is a diverse one
    vectors = np.eye(5, 8)[codes[:, 0]] + 0.1 * rng.normal(size=(ITEMS, 8))
    np.save(root / "semantic_ids" / "item_vectors.npy", vectors.astype(np.float32))
    torch.manual_seed(0)
    model = new_model(ModelConfig(width=16, encoder_layers=1), root / "semantic_ids", UserVocabulary())
    with torch.no_grad():
        model.level_heads.first_bias_K.copy_(torch.tensor([0.0, -3.0, -3.0, -3.0, -3.0]))
    split = history_files.load(root / "histories").split()
    memory = Memory.fit(*split.train_events(), vectors.astype(np.float32))
    save_checkpoint(model, root / "checkpoint", Ranking(Fusion(weight=1.0, followed=0.3, likeness=0.3), Fusion(weight=1.0), memory))
    folders = {f"{name}_dir": root / name for name in ("histories", "users", "semantic_ids")} | {"checkpoint_dir": root / "checkpoint"}
    return folders | {"config": CONFIG, "decoding": DecodingConfig(beam_width=20), "actors": 0}


def test_each_point_is_what_its_setting_lists_for_the_validation_users(world: dict[str, Any], tmp_path: Path) -> None:
    figures = curves.run(**world, out_dir=tmp_path)
    report = json.loads((tmp_path / "curves.json").read_text())
    assert {name: len(points) for name, points in report["curves"].items()} == {"beam": 1, "diverse_beam": 2, "nucleus, top_p 0": 2, "nucleus, top_p 1": 2}
    assert report["protocol"]["users"] == figures["users"] == 30

    split = history_files.load(world["histories_dir"]).split()
    rows = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(split.evaluated))[:30])
    model, how = load_checkpoint(world["checkpoint_dir"], world["semantic_ids_dir"]), load_ranking(world["checkpoint_dir"])
    vectors = np.load(world["semantic_ids_dir"] / "item_vectors.npy")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for section, head in (("curves", "generative"), ("fused", "fused")):
        for points in report[section].values():
            for point in points:
                decoding = DecodingConfig(**point["decoding"])
                ranked = rank_users(model, split, rows, "validation", True, np.zeros((30, 3), np.int64), top_k=10, decoding=decoding, how=how)
                hits, distances = [], []
                for u, listed in zip(rows, ranked[head], strict=True):
                    example = split.example(int(u), "validation")
                    assert not set(listed.tolist()) & (set(example.items.tolist()) - {example.target})
                    hits.append(example.target in listed)
                    cosines = unit[listed] @ unit[listed].T
                    distances.append(1 - (cosines.sum() - 10) / 90)
                assert point["recall@10"] == pytest.approx(np.mean(hits), abs=1e-12)
                assert point["diversity@10"] == pytest.approx(np.mean(distances), abs=1e-5)
                assert point["distinct@10"] == len(np.unique(ranked[head]))

    beam, diverse = report["curves"]["beam"][0], report["curves"]["diverse_beam"]
    measured = ("recall@10", "ndcg@10", "coverage@10", "diversity@10", "distinct@10", "minus_beam_ndcg@10")
    assert {m: diverse[0][m] for m in measured} == {m: beam[m] for m in measured}  # no penalty: the beam
    assert diverse[1]["diversity@10"] > beam["diversity@10"] + 0.1
    assert report["curves"]["nucleus, top_p 1"][0]["distinct@10"] > beam["distinct@10"]


def test_equal_seeds_give_equal_curves_and_another_seed_other_samples(world: dict[str, Any], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 7)):
        curves.run(**world | {"config": CONFIG.model_copy(update={"seed": seed, "users": PEOPLE})}, out_dir=tmp_path / name)
    one, again, other = ((tmp_path / name / "curves.json").read_text() for name in ("one", "again", "other"))
    assert one == again
    one, other = (json.loads(x)["curves"] for x in (one, other))
    assert one["beam"][0]["diversity@10"] == other["beam"][0]["diversity@10"]  # all users either way: only the samples differ
    assert one["nucleus, top_p 1"][0]["diversity@10"] != other["nucleus, top_p 1"][0]["diversity@10"]


@pytest.mark.ray
def test_an_actor_gives_the_same_curves(ray_session: None, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BLOCK_USERS", 7)
    curves.run(**world, out_dir=tmp_path / "here")
    curves.run(**world | {"actors": 1}, out_dir=tmp_path / "actor")
    assert (tmp_path / "here" / "curves.json").read_bytes() == (tmp_path / "actor" / "curves.json").read_bytes()


def test_nobody_to_measure_on_is_said(world: dict[str, Any], tmp_path: Path) -> None:
    short = [["a"], [[1, 2]], [[1, 1]], [[1.0, 1.0]], [[1, 2]]]
    write_table(pa.Table.from_arrays([pa.array(c, t) for c, t in zip(short, HISTORIES.types, strict=True)], schema=HISTORIES), tmp_path / "histories")
    with pytest.raises(UGTError, match="validation target"):
        curves.run(**world | {"histories_dir": tmp_path / "histories"}, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
