"""Dropout and jitter: the shares and the scale they promise, the same for the same seed, fresh in each element."""

from __future__ import annotations

import pytest
import torch

from ugt.model.dropout import Dropout, dropout, jittered


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean_in_forward_and_gradient(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    y = dropout(x, p)
    zero = float((y == 0).float().mean())
    assert zero == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 1 / 131072)  # five standard deviations
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_neighbours_are_dropped_independently() -> None:
    """The four numbers of one draw are not related: each pair of places is zero together as often as two coins say."""
    torch.manual_seed(1)
    zero = (dropout(torch.ones(400_000), 0.5) == 0).float().view(-1, 4)
    both = (zero.T @ zero / len(zero) - 0.25)[~torch.eye(4, dtype=torch.bool)]
    assert both.abs().max() < 5 * (0.25 * 0.75 / len(zero)) ** 0.5


def test_the_seed_decides_and_nothing_is_dropped_when_answering() -> None:
    layer, x = Dropout(0.3), torch.randn(7, 5)
    torch.manual_seed(2)
    first = layer.train()(x)
    torch.manual_seed(2)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0).any()


def test_jitter_is_even_around_one() -> None:
    torch.manual_seed(3)
    noise = jittered(torch.ones(200_000), 0.01)
    assert noise.min() >= 0.99
    assert noise.max() <= 1.01
    assert float(noise.mean()) == pytest.approx(1.0, abs=1e-4)
    assert float(noise.std()) == pytest.approx(0.02 / 12**0.5, rel=0.01)
