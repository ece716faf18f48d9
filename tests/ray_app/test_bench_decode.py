"""The decode's bench: its report, its judge, and that its rival does the same task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_app.bench import generated
from ray_app.bench.decode import DecodeBench, TorchDecode, run
from ray_app.bench.hf_generate import EncoderDecoder, parameters_beside_items
from ugt.model.config import ModelConfig
from ugt.model.ugt import UGT
from ugt.runtime import Generator

ITEMS = 400


@pytest.fixture(scope="module")
def model() -> UGT:
    torch.set_num_threads(1)
    return generated.model(ModelConfig(width=32, heads=1, max_length=6), generated.semantic_ids(ITEMS, 0), 0)


@pytest.fixture(scope="module")
def generator(model: UGT, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(generated.write_version(model, tmp_path_factory.mktemp("bench") / "v1"))


def test_the_report_has_every_figure_and_no_illegal_item() -> None:
    sizes = ModelConfig(width=32, heads=1, encoder_layers=1, max_length=6)
    report = run(
        DecodeBench(model=sizes, small_width=16, items=ITEMS, large_items=900, events=6, beam=10, rounds=2, batch_rounds=1, sequences=2000, compared=10)
    )
    for row in ("onnx", "torch", "int8", "fp16", "d64"):
        assert {"p50_ms", "p99_ms", "batch32_ms"} <= set(report[row])
        assert 0 < report[row]["p50_ms"] <= report[row]["p99_ms"]
    assert report["ratio_to_hf_generate"] == pytest.approx(report["hf_generate"]["p50_ms"] / report["onnx"]["p50_ms"], abs=0.01)
    assert report["items_1m"]["ratio"] == pytest.approx(report["items_1m"]["p50_ms"] / report["onnx"]["p50_ms"], abs=0.01)
    assert report["items_1m"]["trie_mb"] > 0
    assert (report["illegal"], report["hf_generate"]["illegal"]) == (0, 0)
    assert report["sequences"] >= 2000
    assert (report["beam"], report["width"], report["seed"]) == (10, 32, 0)
    assert report["params"] > report["params_beside_items"]
    assert report["onnx"]["agreement"]["same_top10"] == 1.0


def test_the_judge_finds_each_kind_of_fault(model: UGT, generator: Generator) -> None:
    codes_N3 = model.semantic_ids.codes_N3
    request = replace(generated.requests(ITEMS, 1, 5, 8, 0)[0], allowed=np.arange(ITEMS) % 2 == 0)
    (result,) = generator.recommend([request])
    assert generated.illegal(request, result, codes_N3) == 0
    items, codes = result.item_indices, result.codes

    def judged(first: int, its_codes: np.ndarray | None = None) -> int:
        of_item = codes_N3[first] if its_codes is None and 0 <= first < ITEMS else codes[0] if its_codes is None else its_codes
        return generated.illegal(request, replace(result, item_indices=np.r_[first, items[1:]], codes=np.r_[[of_item], codes[1:]]), codes_N3)

    assert judged(ITEMS) == 1  # no item
    assert judged(-1) == 1
    assert judged(int(items[0]), codes[1]) == 1  # another item's codes
    assert judged(next(i for i in request.exclude if i % 2 == 0)) == 1
    assert judged(next(i for i in range(1, ITEMS, 2) if i not in request.exclude)) == 1  # filtered out
    assert judged(int(items[1])) == 1  # twice


def test_the_judged_requests_are_of_all_kinds(model: UGT) -> None:
    endless = generated.judged_requests(ITEMS, model.items.k1, 6, 8, 0)
    requests = [next(endless) for _ in range(300)]
    assert {r.strategy for r in requests} == {"beam", "diverse_beam", "nucleus"}
    assert {len(r.items) for r in requests} == set(range(7))
    assert any(r.allowed is not None and not r.allowed.any() for r in requests) or any(r.allowed is not None and r.allowed.sum() < 5 for r in requests)
    assert any(len(r.exclude) > len(r.items) for r in requests)
    assert any(r.prior is not None for r in requests)


def test_pytorch_in_the_bench_decodes_what_onnx_decodes(model: UGT, generator: Generator) -> None:
    requests = generated.requests(ITEMS, 5, 6, 12, 1)
    beams = TorchDecode(model, 12)(requests)
    assert [r.item_indices.tolist() for r in generator.recommend(requests)] == beams.item_BW.tolist()


def test_the_rival_is_of_our_size_and_writes_only_items(model: UGT) -> None:
    rival = EncoderDecoder(model, 0)
    assert rival.wanted == parameters_beside_items(model)
    assert rival.parameters == pytest.approx(rival.wanted, rel=0.6)  # of so small a model a layer is a third
    tokens = rival.generate([[1, 2, 3], [4]], 15)
    assert tokens.shape == (30, 4)
    assert rival.illegal(tokens, model) == 0
    assert len({tuple(t) for t in tokens[:15].tolist()}) == 15
    assert rival.illegal(torch.tensor([[0, 0, 0, 0], [0, 2, 2, 2]]), model) == 2


def test_a_generated_catalogue_fills_groups_up_to_their_size_and_no_further(tmp_path: Path) -> None:
    ids = generated.semantic_ids(3000, 0)
    health = ids.health()
    assert health["collisions"] == 0
    assert health["group_max"] <= ids.trie.k3
    assert np.array_equal(ids.codes_N3, generated.semantic_ids(3000, 0).codes_N3)
