"""Warm start: known items keep their vectors under any codes, new ones start anew, and what is not carried over is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from train import warm_start
from ugt.model.config import ModelConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.scoring import CARD, Ranking, load_ranking, save_checkpoint
from ugt.semantic_ids import SemanticIds

CONFIG = ModelConfig(width=16, max_length=6)


def catalogue(folder: Path, items: list[str], codebooks: int, turned: bool = False) -> Path:
    """A semantic IDs folder; `codebooks` names what its codebooks hold, `turned` gives every item another code."""
    place = np.arange(len(items))
    codes = np.stack([place % 4, place // 4 % 4, place // 16], axis=1)
    SemanticIds.from_codes(codes[::-1].copy() if turned else codes, items, 4, 4, 8).save(folder)
    rng = np.random.default_rng(codebooks)
    np.savez(folder / "codebooks.npz", l1_KD=rng.normal(size=(4, 5)))
    np.save(folder / "item_vectors.npy", np.stack([np.random.default_rng([codebooks, int(i[1:])]).normal(size=5) for i in items]).astype(np.float32))
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, UGT]:
    """A version as the export leaves it: the weights in a folder of their own, the item vectors above it."""
    items = [f"i{i:02d}" for i in range(40)]
    ids = catalogue(tmp_path / "old", items, 1)
    torch.manual_seed(0)
    model = UGT(CONFIG, SemanticIds.load(ids), np.load(ids / "item_vectors.npy"), UserVocabulary(["F"], []))
    version = tmp_path / "version"
    save_checkpoint(model, version / warm_start.FOLDER, Ranking())
    for name in (warm_start.TABLE, warm_start.CODEBOOKS):
        (version / warm_start.FOLDER / name).write_bytes((ids / name).read_bytes())
    np.save(version / "item_vectors.npy", model.tables().item_ID[1:].detach().numpy())
    return version, model


def rows(model: UGT) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return dict(zip(model.semantic_ids.item_ids, model.tables().item_ID[1:].numpy(), strict=True))


@pytest.mark.parametrize(("codebooks", "turned"), [(1, False), (1, True), (2, True)], ids=["same codes", "codes moved", "other codebooks"])
def test_known_items_keep_their_vectors_whatever_became_of_the_codes(tmp_path: Path, trained: tuple[Path, UGT], codebooks: int, turned: bool) -> None:
    version, old = trained
    items = [f"i{i:02d}" for i in range(3, 46)]  # 3 are gone, 6 are new
    ids = catalogue(tmp_path / "new", items, codebooks, turned)
    model, carried = warm_start.start(version, CONFIG, ids)
    before, after = rows(old), rows(model)
    shared = set(before) & set(after)
    assert (carried["items_carried"], carried["items_new"], carried["items_gone"]) == (37, 6, 3) == (len(shared), len(set(after) - shared), 3)
    for item in shared:
        np.testing.assert_allclose(after[item], before[item], atol=1e-5)
    assert torch.equal(model.encoder.blocks[0].feed_forward.up.weight, old.encoder.blocks[0].feed_forward.up.weight)
    assert model.vocabulary.to_json() == old.vocabulary.to_json()
    same = codebooks == 1
    assert carried["codes_carried"] is same
    assert torch.equal(model.items.codes[0].weight, old.items.codes[0].weight) is same
    assert torch.equal(model.items.project.weight, old.items.project.weight) is same
    assert ("items.project.weight" in carried["weights_new"]) is not same


def test_weights_of_other_sizes_and_folders_without_weights_are_refused(tmp_path: Path, trained: tuple[Path, UGT]) -> None:
    version, _ = trained
    with pytest.raises(UGTError, match=r"other sizes: width 16, now 32\. Set model\.\*"):
        warm_start.start(version, CONFIG.model_copy(update={"width": 32}), tmp_path / "old")
    with pytest.raises(UGTError, match=r"holds no weights to start from \(model\.safetensors"):
        warm_start.start(tmp_path / "old", CONFIG, tmp_path / "old")


def test_a_version_from_before_there_was_a_memory_still_gives_its_weights(trained: tuple[Path, UGT], tmp_path: Path) -> None:
    version, model = trained
    path = version / warm_start.FOLDER / CARD
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"format": 2, "fusion": {"method": "log_probability", "weight": 0.5}}))
    started, _ = warm_start.start(version, CONFIG, tmp_path / "old")
    assert torch.allclose(started.tables().item_ID, model.tables().item_ID, atol=1e-6)
    assert load_ranking(version / warm_start.FOLDER).memory is None
    path.write_text(json.dumps(card | {"format": 1}))
    with pytest.raises(UGTError, match="has format 1, this version reads 2 and 3"):
        warm_start.start(version, CONFIG, tmp_path / "old")
