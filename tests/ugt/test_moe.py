"""The mixture of experts token by token: top-k, gates, the shared expert, jitter. Capacity and balance: test_model.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ugt.model.config import ModelConfig
from ugt.model.moe import MixtureOfExperts


def mixture(**sizes: float | bool) -> MixtureOfExperts:
    torch.manual_seed(0)
    made = MixtureOfExperts(ModelConfig(**({"width": 8, "experts": 4, "capacity_factor": 4.0, "router_jitter": 0.0, "decoder_dropout": 0.0} | sizes)))
    for bias in (made.up_bias_EF, made.down_bias_ED):
        torch.nn.init.normal_(bias)
    return made


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_a_token_passes_through_its_top_experts_and_the_shared_one(chosen: int, shared: bool, training: bool) -> None:
    moe = mixture(experts_per_token=chosen, expert_width=2, shared_expert=shared).train(training)
    x_MD = torch.randn(9, 8)
    made, _ = moe(x_MD)
    for x, y in zip(x_MD, made, strict=True):
        probability = F.softmax(moe.router(x), dim=0)
        best = sorted(range(4), key=lambda e: -probability[e].item())[:chosen]
        expected = sum(
            probability[e] / probability[best].sum() * (F.gelu(x @ moe.up_EDF[e] + moe.up_bias_EF[e]) @ moe.down_EFD[e] + moe.down_bias_ED[e]) for e in best
        )
        if shared:
            expected = expected + moe.shared.down(F.gelu(moe.shared.up(x)))
        assert torch.allclose(y, expected, atol=1e-5)


def test_jitter_moves_the_choice_of_experts_in_training_and_nothing_else() -> None:
    x_MD = torch.randn(64, 8)
    moe = mixture(experts_per_token=1, router_jitter=0.5)
    assert not torch.equal(moe.train()(x_MD)[0], moe(x_MD)[0])
    assert torch.equal(moe.eval()(x_MD)[0], moe(x_MD)[0])
    alone = mixture(experts=1, experts_per_token=1, router_jitter=0.5).train()  # nothing to choose: what an expert reads has no noise
    assert torch.equal(alone(x_MD)[0], alone(x_MD)[0])
    assert torch.equal(mixture(experts_per_token=1).train()(x_MD)[0], mixture(experts_per_token=1).train()(x_MD)[0])
