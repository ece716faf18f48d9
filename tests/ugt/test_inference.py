"""The forward passes of decoding give what the modules that train give."""

from __future__ import annotations

import pytest
import torch

from ray_app.bench import generated
from ugt.decoding import Beams, beam_search, constraints
from ugt.model import heads, inference
from ugt.model.config import ModelConfig
from ugt.model.inputs import History, build_inputs
from ugt.model.moe import MixtureOfExperts
from ugt.model.ugt import UGT
from ugt.scoring import tensors
from ugt.steps import Steps

CLOSE = 1e-5  # the same sums in another order, in float32
CONFIG = ModelConfig(width=16, heads=4, encoder_layers=2, decoder_layers=2, max_length=8)


@pytest.fixture(scope="module")
def model() -> UGT:
    return generated.model(CONFIG, generated.semantic_ids(300, 0), 0)


@pytest.mark.parametrize(("experts", "chosen", "shared"), [(1, 1, False), (4, 2, False), (5, 3, True)])
def test_both_ways_to_compute_experts_give_what_the_module_gives(experts: int, chosen: int, shared: bool) -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(ModelConfig(width=16, heads=1, experts=experts, experts_per_token=chosen, expert_width=2, shared_expert=shared)).eval()
    x_MD = torch.randn(37, 16)
    with torch.inference_mode():
        wanted, _ = mixture(x_MD)
        assert torch.allclose(inference.chosen_experts(mixture, x_MD), wanted, atol=CLOSE)
        assert torch.allclose(inference.all_experts(mixture, x_MD), wanted, atol=CLOSE)
        assert torch.allclose(inference.chosen_experts(mixture, x_MD[:1]), wanted[:1], atol=CLOSE)  # most experts have no token


def test_the_encoder_of_the_graph_is_the_encoder(model: UGT) -> None:
    x_BTD = torch.randn(3, 7, 16)
    with torch.inference_mode():
        assert torch.allclose(inference.encoded(model.encoder, x_BTD, None), model.encoder(x_BTD), atol=CLOSE)


def test_three_steps_with_what_was_written_are_the_decoder_over_three_tokens(model: UGT) -> None:
    batch, beams, length_B = 3, 4, torch.tensor([0, 6, 3])
    state_BTD, token_BQ3D = torch.randn(batch, 7, 16), torch.randn(batch, beams, 3, 16)
    token_BQ3D[:, :, 0] = token_BQ3D[:, :1, 0]  # the first token is the same for all beams of a request
    mask_B1T = (torch.arange(7) <= length_B[:, None])[:, None]
    with torch.inference_mode():
        wanted, _, _ = model.decoder(token_BQ3D, None, model.decoder.memory(state_BTD), mask_B1T.expand(-1, beams, -1))
        memory = inference.memory_of(model.decoder, state_BTD, length_B)
        first, code = inference.decoder_step(model.decoder, token_BQ3D[:, 0, 0], None, [], memory, 1)
        written = [inference.follow(code, torch.arange(batch).repeat_interleave(beams))]
        second, code = inference.decoder_step(model.decoder, token_BQ3D[:, :, 1].reshape(-1, 16), None, written, memory, beams)
        third, _ = inference.decoder_step(model.decoder, token_BQ3D[:, :, 2].reshape(-1, 16), None, [*written, code], memory, beams)
    assert torch.allclose(first, wanted[:, 0, 0], atol=CLOSE)
    for found, step in ((second, 1), (third, 2)):
        assert torch.allclose(found.view(batch, beams, -1), wanted[:, :, step], atol=CLOSE)


def test_tokens_given_once_with_their_beams_are_tokens_given_for_each_beam(model: UGT) -> None:
    token_RD, row_M = torch.randn(5, 16), torch.tensor([4, 0, 0, 2, 1, 4])
    with torch.inference_mode():
        memory = inference.memory_of(model.decoder, torch.randn(2, 4, 16), torch.tensor([3, 2]))
        once, _ = inference.decoder_step(model.decoder, token_RD, row_M, [], memory, 3)
        each, _ = inference.decoder_step(model.decoder, token_RD[row_M], None, [], memory, 3)
    assert torch.allclose(once, each, atol=CLOSE)


def test_few_and_many_first_codes_are_decoded_alike(model: UGT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to FEW_CODES a product per code, above it the rows of the beams' codes: one answer."""
    requests = generated.requests(300, 3, 6, 10, 0)
    inputs = tensors(build_inputs([History(r.items, r.actions, r.values, r.timestamps) for r in requests], [0] * 3, [(0, 0, 0)] * 3, 8))

    def decode(width: int) -> Beams:
        with torch.inference_mode():
            limits = constraints(model, [[*set(r.exclude)] for r in requests])
            sizes = torch.arange(width), torch.arange(model.items.largest_group)
            return beam_search(model, model.encode(inputs, model.tables()), inputs["length_B"], inputs["context_B"], model.tables(), limits, *sizes)

    for width in (2, 40):  # fewer beams than codes, and more
        monkeypatch.undo()
        few = decode(width)
        monkeypatch.setattr("ugt.steps.FEW_CODES", 0)
        monkeypatch.setattr(heads, "FEW_CODES", 0)
        many = decode(width)
        assert torch.equal(few.item_BW, many.item_BW)
        assert torch.allclose(few.log_prob_BW, many.log_prob_BW, atol=CLOSE)


def test_beams_that_hold_the_same_prefix_get_the_same_children(model: UGT) -> None:
    """An exclusion is taken from every beam of its prefix, though it is counted for one of them."""
    group = int(torch.argmax(model.items.group_count_G))
    l1 = group // model.items.k2
    under = torch.from_numpy(model.semantic_ids.with_prefix(l1, group % model.items.k2))
    with torch.inference_mode():
        limits = constraints(model, [under[1:].numpy()])
        state_BTD, lengths = torch.randn(1, 4, 16), (torch.tensor([3]), torch.tensor([0]))
        steps = Steps(model, state_BTD, *lengths, model.tables(), limits, torch.arange(3), torch.arange(model.items.largest_group))
        steps.first()
        other = next(g for g in range(model.items.k1) if g != l1)
        second_BWK = steps.second(torch.tensor([[l1, other, l1]]))
        assert torch.equal(second_BWK[0, 0], second_BWK[0, 2])
        log_prob_BWC, item_BWC = steps.third(torch.tensor([[2, 0, 0]]), torch.tensor([[group, group, group]]))
    assert torch.equal(item_BWC[0, 0], item_BWC[0, 1])
    assert item_BWC[0, 0][item_BWC[0, 0] > 0].tolist() == [int(under[0]) + 1]  # the one item that is left
    assert float(log_prob_BWC[0, 0].exp().sum()) == pytest.approx(1.0, abs=1e-5)
