"""The three stages on Ray Train over a small world, from artifacts to an exported version, and what is refused on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from train import export, ugt
from ugt import histories as history_files
from ugt.model.config import DecodingConfig, ModelConfig, StageConfig, TrainingConfig
from ugt.runtime import Generator
from ugt.schema import UGTError
from ugt.scoring import Ranking, load_checkpoint, load_ranking, rank_users, user_codes
from ugt.semantic_ids import SemanticIds

N, USERS_COUNT = 64, 48
MODEL = ModelConfig(width=16, max_length=10, encoder_dropout=0.0, decoder_dropout=0.0)
FAST = StageConfig(epochs=6, learning_rate=2e-2)
TRAINING = TrainingConfig(
    batch_size=16,
    threads=1,
    validate_every=3,
    dense_negatives=0,
    contrastive_positions=32,
    dpo_beam=6,
    stage1=FAST,
    stage2=StageConfig(epochs=1, learning_rate=1e-3, contrastive_weight=0.1),
    stage3=StageConfig(epochs=1, learning_rate=1e-3, dpo_weight=0.05),
)


@pytest.fixture(scope="module")
def world(write_world: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who go round the catalogue in steps of their own: the next item follows from the last two."""
    rng = np.random.default_rng(0)
    lists = [((rng.integers(N) + np.arange(rng.integers(4, 22)) * rng.integers(1, 4)) % N).tolist() for _ in range(USERS_COUNT)]
    angle = np.arange(N)[:, None] * 2 * np.pi / N * np.array([1, 2, 4])
    genders = ["F" if i % 2 else None for i in range(USERS_COUNT)]
    return write_world(tmp_path_factory.mktemp("world"), lists, np.concatenate([np.sin(angle), np.cos(angle)], 1), genders)


def train(world: Path, stage: int, name: str, init: str | None = None, model: ModelConfig = MODEL, **changes) -> dict:
    inputs = (world / "histories", world / "etl/users", world / "semantic_ids")
    training = TRAINING.model_copy(update=changes)
    return ugt.run(stage, *inputs, model, training, world / init if init else None, world / name, world / f"work-{name}")


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stages(world: Path, ray_session: None) -> list[dict]:
    """Figures of stage 1 (on two workers), 2 and 3."""
    return [train(world, 1, "one", workers=2), train(world, 2, "two", "one"), train(world, 3, "three", "two")]


@pytest.mark.ray
def test_three_stages_learn_and_each_logs_its_terms(world: Path, stages: list[dict]) -> None:
    first = curve(world / "one")
    assert first[0]["epoch"] == -1
    assert first[-1]["loss"] < 0.7 * first[1]["loss"]
    assert stages[0]["validation_ndcg@10"] > 2 * stages[0]["validation_ndcg@10_at_start"]
    terms = [set(curve(world / name)[-1]) & {"ntp", "dense", "balance", "contrastive", "dpo"} for name in ("one", "two", "three")]
    base = {"ntp", "dense", "balance"}
    assert terms == [base, base | {"contrastive"}, base | {"dpo"}]
    for before, after in itertools.pairwise(stages):  # keep-best: a stage never ends below its start
        assert after["validation_ndcg@10"] >= after["validation_ndcg@10_at_start"]
        assert after["validation_ndcg@10_at_start"] == pytest.approx(before["validation_ndcg@10"], abs=1e-6)
    assert stages[0]["targets_per_epoch"] == sum(max(0, n - 2) for n in history_files.load(world / "histories").lengths)


@pytest.mark.ray
def test_the_checkpoint_ranks_users_and_exports_to_the_same_answers(world: Path, stages: list[dict]) -> None:
    model = load_checkpoint(world / "three", world / "semantic_ids")
    split = history_files.load(world / "histories").split(3)
    users = np.flatnonzero(split.evaluated)
    codes = user_codes(world / "etl/users", [split.histories.user_ids[u] for u in users], model.vocabulary)
    ranked = rank_users(model, split, users, "test", True, codes, top_k=20, how=load_ranking(world / "three"))
    target = np.array([split.example(int(u), "test").target for u in users])
    for head in ("fused", "generative", "dense"):
        assert (ranked[head][:, :10] == target[:, None]).any(1).mean() > 0.5, head  # chance is a sixth
        for row, u in enumerate(users):
            shown = ranked[head][row][ranked[head][row] >= 0]
            assert not (set(shown.tolist()) - {int(target[row])}) & set(split.example(int(u), "test").items.tolist())
    figures = export.run(world / "three", world / "semantic_ids", world / "etl", world / "histories", None, DecodingConfig(), world / "version")
    assert figures["same_top10"] == 1.0
    assert figures["max_difference"] < 1e-4
    card = json.loads((world / "version/card.json").read_text())
    assert card["fusion"] == stages[2]["fusion"]
    assert card["check"]["requests"] == len(users)
    assert len(Generator(world / "version").item_vectors) == N


def task(world: Path, stage: int, work: str, **changes) -> dict:
    """What a worker is given; `train_stage` runs without Ray."""
    (world / work).mkdir()
    folders = {"histories_dir": world / "histories", "users_dir": world / "etl/users", "semantic_ids_dir": world / "semantic_ids", "work_dir": world / work}
    return {name: str(path) for name, path in folders.items()} | {
        "stage": stage,
        "init_dir": None,
        "model": MODEL.model_dump(),
        "training": TRAINING.model_copy(update=changes).model_dump(),
        "history": {"min_events": 3},
    }


def test_a_stage_killed_between_epochs_ends_with_the_same_weights(world: Path) -> None:
    class Killed(Exception):
        pass

    def stop(row: dict) -> None:
        if row["epoch"] == 2:
            raise Killed

    whole, cut = task(world, 1, "work-whole"), task(world, 1, "work-cut")
    ugt.train_stage(whole)
    with pytest.raises(Killed):
        ugt.train_stage(cut, report=stop)
    ugt.train_stage(cut)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in curve(world / w / "result")] for w in ("work-whole", "work-cut")]
    assert rows[0] == rows[1]
    a, b = (load_checkpoint(world / w / "result", world / "semantic_ids").state_dict() for w in ("work-whole", "work-cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_is_an_error_with_a_way_out(world: Path) -> None:
    broken = ugt.new_model(MODEL, world / "semantic_ids", ugt.UserVocabulary([], []))
    with torch.no_grad():
        broken.level_heads.query[0].weight[0, 0] = float("inf")
    ugt.save_checkpoint(broken, world / "broken", Ranking(), stage=1, figures={}, training={})
    with pytest.raises(UGTError, match=r"stage2: the loss is not finite .* epoch 0, step 0, users u.*learning_rate"):
        ugt.train_stage(task(world, 2, "work-nan") | {"init_dir": str(world / "broken")})
    assert not (world / "work-nan/result").exists()


def test_without_anybody_to_validate_on_the_last_epoch_is_kept(world: Path) -> None:
    ugt.train_stage(task(world, 1, "work-nobody") | {"history": {"min_events": 1000}})
    rows = curve(world / "work-nobody/result")
    assert rows[-1]["loss"] < rows[1]["loss"]
    card = json.loads((world / "work-nobody/result/model.json").read_text())
    assert card["figures"]["validation_ndcg@10"] is None
    state = torch.load(world / "work-nobody/state.pt", weights_only=True)["model"]
    kept = load_checkpoint(world / "work-nobody/result", world / "semantic_ids").state_dict()
    settled = ("history.action", "history.value", "history.gap", "history.user", "context.moment")  # rows that were never read are set at the end
    assert all(torch.equal(state[name], weights) for name, weights in kept.items() if not name.startswith(settled))


def test_what_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="stage 2 starts from the checkpoint of stage 1"):
        train(world, 2, "x")
    with pytest.raises(UGTError, match="no checkpoint in"):
        load_checkpoint(tmp_path, world / "semantic_ids")
    model = ugt.new_model(MODEL, world / "semantic_ids", ugt.UserVocabulary([], []))
    ugt.save_checkpoint(model, tmp_path / "checkpoint", Ranking(), training={}, stage=1, figures={})
    ids = SemanticIds.load(world / "semantic_ids")
    SemanticIds.from_codes(ids.codes_N3, [f"other{i:03d}" for i in range(N)], 4, 4, 8).save(tmp_path / "other")
    np.save(tmp_path / "other/item_vectors.npy", np.zeros((N, 6), np.float32))
    with pytest.raises(UGTError, match="trained on another catalogue"):
        load_checkpoint(tmp_path / "checkpoint", tmp_path / "other")
    changed = task(world, 2, "work-changed") | {"init_dir": str(tmp_path / "checkpoint"), "model": MODEL.model_copy(update={"width": 32}).model_dump()}
    with pytest.raises(UGTError, match="other settings of model: width"):
        ugt.train_stage(changed)
