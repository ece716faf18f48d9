"""The HSTU block: what the paper's sums give, causal, blind to padding and batch, and the same in the fast path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from ugt.model.config import ModelConfig
from ugt.model.encoder import Encoder
from ugt.model.hstu import HstuBlock, elapsed_codes, middle_minutes
from ugt.model.inference import encoded
from ugt.model.inputs import GAP_CODES, gap_between

CONFIG = ModelConfig(width=8, heads=2, encoder_layers=2, max_length=7, encoder_block="hstu")


def history(events: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and gap codes; the first event's gap is unknown, and now and then another."""
    torch.manual_seed(events)
    gap_BL = torch.randint(0, GAP_CODES, (batch, events))
    gap_BL[:, 0] = 0
    return torch.randn(batch, 1 + events, 8), gap_BL


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(CONFIG).eval()
    for block in made.blocks:
        torch.nn.init.normal_(block.position.weight)  # as large as a trained bias: a wrong one must show
        torch.nn.init.normal_(block.time.weight)
    return made


def test_the_minutes_of_a_gap_code_have_that_code() -> None:
    seconds = middle_minutes()[1:].numpy() * 60
    assert gap_between(np.full(len(seconds), 10), 10 + seconds).tolist() == list(range(1, GAP_CODES))


def test_the_time_between_two_events_is_the_sum_of_the_gaps_between_and_unknown_across_an_unknown_one() -> None:
    gap_BL = history(40)[1]
    gap_BL[1] = 1 + torch.arange(40) % (GAP_CODES - 1)
    gap_BL[2] = 2
    gap_BL[:, 0] = 0
    minutes = middle_minutes().tolist()
    found = elapsed_codes(gap_BL)
    for b, gaps in enumerate(gap_BL.tolist()):
        assert found[b, 0, 0] == 1
        for i in range(1, 41):
            assert found[b, i, 0] == 0  # nobody knows when a user token was
            for j in range(1, i + 1):
                between = gaps[j:i]
                known = min((sum(minutes[g] for g in between) + 1).bit_length(), GAP_CODES - 1)
                assert found[b, i, j] == (0 if 0 in between else known), (b, i, j)


def test_a_block_is_the_gated_sum_over_what_came_before_position_by_position(encoder: Encoder) -> None:
    block = encoder.blocks[0]
    assert isinstance(block, HstuBlock)
    x_BTD, gap_BL = history(6)
    codes = elapsed_codes(gap_BL)
    with torch.no_grad():
        made = block(x_BTD, codes)
        for b, x_TD in enumerate(x_BTD):
            u, v, q, k = F.silu(F.linear(block.norm(x_TD), block.project.weight, block.project.bias)).chunk(4, dim=1)
            for i in range(7):
                y = torch.zeros(8)
                for head in (slice(0, 4), slice(4, 8)):
                    for j in range(i + 1):
                        score = q[i, head] @ k[j, head] + block.position.weight[i - j, 0] + block.time.weight[codes[b, i, j], 0]
                        y[head] += score * torch.sigmoid(score) / (CONFIG.max_length + 1) * v[j, head]
                y = (y - y.mean()) / (y.var(unbiased=False) + 1e-6).sqrt()
                assert torch.allclose(made[b, i], x_TD[i] + block.out(y * u[i]), atol=1e-4)


def test_a_state_knows_nothing_of_later_events_of_padding_and_of_the_batch(encoder: Encoder) -> None:
    x_BTD, gap_BL = history(7)
    with torch.no_grad():
        whole = encoder(x_BTD, gap_BL)
        for b, n in enumerate((0, 3, 7)):
            assert torch.allclose(whole[b, : n + 1], encoder(x_BTD[b : b + 1, : n + 1], gap_BL[b : b + 1, :n])[0], atol=1e-5)


def test_time_and_place_change_a_state(encoder: Encoder) -> None:
    x_BTD, gap_BL = history(5)
    later = gap_BL.clone()
    later[:, 3] = (gap_BL[:, 3] + 7) % GAP_CODES
    with torch.no_grad():
        made, moved = encoder(x_BTD, gap_BL), encoder(x_BTD, later)
        swapped = encoder(x_BTD[:, [0, 2, 1, 3, 4, 5]], gap_BL * 0)
        assert torch.equal(made[:, :4], moved[:, :4])
        assert ((made - moved)[:, 4:].abs().amax((1, 2)) > 1e-3).all()
        assert ((swapped - encoder(x_BTD, gap_BL * 0))[:, 5].abs().amax(1) > 1e-3).all()  # without a bias of position the sum would not tell


@pytest.mark.parametrize("kind", ["attention", "hstu"])
def test_decoding_encodes_as_training_does(kind: str) -> None:
    torch.manual_seed(1)
    made = Encoder(CONFIG.model_copy(update={"encoder_block": kind})).eval()
    x_BTD, gap_BL = history(7)
    with torch.no_grad():
        assert torch.allclose(encoded(made, x_BTD, gap_BL), made(x_BTD, gap_BL), atol=1e-5)


def test_every_weight_is_trained() -> None:
    made = Encoder(CONFIG).train()
    (made(*history(7)) * torch.randn(3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_without_the_gap_there_is_no_relative_time() -> None:
    with pytest.raises(ValidationError, match="add gap to event_attributes"):
        ModelConfig(encoder_block="hstu", event_attributes=("action",))
