"""What of the captured decode can be said without a GPU: its sizes, its padding, and that it refuses to run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ray_app.bench import generated
from ugt.cuda_graphs import CapturedDecode, bucket, padded
from ugt.decoding import beam_search, constraints
from ugt.model.config import ModelConfig
from ugt.model.inference import encode
from ugt.model.inputs import History, build_inputs
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.scoring import tensors


@pytest.fixture(scope="module")
def model() -> UGT:
    return generated.model(ModelConfig(width=16, heads=2, max_length=8), generated.semantic_ids(300, 0), 0)


def test_a_batch_takes_the_next_size_that_holds_it() -> None:
    sizes = (1, 2, 4, 8)
    assert [bucket(n, sizes, "requests") for n in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]
    with pytest.raises(UGTError, match=r"9 exclusions are more than .* room for \(8\)"):
        bucket(9, sizes, "exclusions")


def test_padding_changes_no_answer(model: UGT) -> None:
    rng = np.random.default_rng(0)
    histories = [History(rng.integers(0, 300, n), rng.integers(1, 6, n), rng.random(n), np.arange(n) + 10**9) for n in (0, 3, 5)]
    inputs = tensors(build_inputs(histories, [10**9] * 3, np.zeros((3, 3)), 8))
    limits = constraints(model, [np.unique(h.items) for h in histories], np.arange(300) % 3 > 0, read_BL=inputs["item_BL"])
    with torch.inference_mode():
        tables = model.tables()
        sizes = torch.arange(20), torch.arange(model.items.largest_group)

        def decode(inputs, limits):
            return beam_search(model, encode(model, inputs, tables), inputs["length_B"], inputs["context_B"], tables, limits, *sizes)

        plain, wide = decode(inputs, limits), decode(*padded(inputs, limits, batch=8, events=8, exclusions=64))
    assert len(wide.item_BW) == 8
    assert torch.equal(wide.item_BW[:3], plain.item_BW)
    assert torch.allclose(wide.log_prob_BW[:3], plain.log_prob_BW, atol=1e-5)
    assert torch.allclose(wide.user_BD[:3], plain.user_BD, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the next test runs")
def test_without_cuda_it_says_so_and_does_not_run_on_the_cpu(model: UGT) -> None:
    with pytest.raises(UGTError, match="no CUDA device"):
        CapturedDecode(model, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: needs a CUDA device")
def test_a_replayed_decode_is_the_decode(model: UGT) -> None:
    captured = CapturedDecode(model, 20, batches=(1, 4))
    rng = np.random.default_rng(1)
    for sizes in ((3,), (5, 0, 7), (2, 2, 2, 2, 2, 2)):
        histories = [History(rng.integers(0, 300, n), rng.integers(1, 6, n), rng.random(n), np.arange(n) + 10**9) for n in sizes]
        inputs = tensors(build_inputs(histories, [10**9] * len(sizes), np.zeros((len(sizes), 3)), 8))
        cpu = copy.deepcopy(model).cpu()
        limits = constraints(cpu, [np.unique(h.items) for h in histories], read_BL=inputs["item_BL"])
        with torch.inference_mode():
            tables = cpu.tables()
            third_C = torch.arange(cpu.items.largest_group)
            plain = beam_search(cpu, encode(cpu, inputs, tables), inputs["length_B"], inputs["context_B"], tables, limits, torch.arange(20), third_C)
        found = captured(inputs, limits)
        assert torch.equal(found.item_BW[:, :10], plain.item_BW[:, :10])
        assert torch.allclose(found.log_prob_BW, plain.log_prob_BW, atol=1e-3)  # TF32 is off by default; sums still come in another order
