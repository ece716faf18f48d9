"""Each loss against its slow, obvious form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ugt.losses import dense_softmax, dpo, hierarchical_negatives, info_nce, next_token
from ugt.model.config import ModelConfig
from ugt.model.embeddings import ItemTable
from ugt.semantic_ids import SemanticIds


def test_next_token_weighs_the_levels() -> None:
    assert next_token(torch.tensor([[-1.0, -2.0, -4.0]]), (0.5, 0.3, 0.2)).tolist() == pytest.approx([1.9])


def test_sampled_softmax_estimates_the_full_one() -> None:
    torch.manual_seed(0)
    user, table, target = torch.randn(200, 8) * 0.5, torch.cat([torch.zeros(1, 8), torch.randn(500, 8) * 0.5]), torch.randint(1, 501, (200,))
    full = dense_softmax(user, target, table, 0).mean()
    sampled = torch.stack([dense_softmax(user, target, table, 100).mean() for _ in range(20)]).mean()
    assert sampled == pytest.approx(float(full), rel=0.02)  # the estimate of a logarithm is a little low


@pytest.mark.parametrize("negatives", [0, 300])
def test_an_item_read_before_is_as_likely_as_the_repeat_bias_says(negatives: int) -> None:
    torch.manual_seed(0)
    user, table, target = torch.zeros(200, 8), torch.zeros(501, 8), torch.full((200,), 7)
    read = torch.tensor([[7, 3, 0]] * 100 + [[9, 3, 0]] * 100)
    loss = dense_softmax(user, target, table, negatives, (read, torch.tensor(-2.0)))
    # all logits are 0 but those of the two items read; the target is one of them in the first half
    assert loss[:100].mean() == pytest.approx(2.0 + math.log(498 + 2 * math.exp(-2)), abs=0.02)
    assert loss[100:].mean() == pytest.approx(math.log(498 + 2 * math.exp(-2)), abs=0.02)


def test_hard_negatives_share_the_prefix_of_their_target() -> None:
    torch.manual_seed(1)
    codes = np.array([(i % 3, i // 3 % 4, i // 12) for i in range(60)])
    ids = SemanticIds.from_codes(codes, [f"i{i:02d}" for i in range(60)], 3, 4, 8)
    items = ItemTable(ModelConfig(width=8), ids, np.zeros((60, 2), np.float32))
    target = torch.arange(1, 61)
    drawn = hierarchical_negatives(target, items, 6) - 1
    assert (items.codes_N3[drawn[:, :6]][..., 0] == items.codes_N3[target - 1][:, None, 0]).all()
    assert (items.group_N[drawn[:, 6:]] == items.group_N[target - 1][:, None]).all()
    assert len(drawn[:, :6].unique()) == 60  # the whole L1 is drawn from, not a corner of it


def test_info_nce_masks_the_target_among_its_negatives() -> None:
    torch.manual_seed(0)
    table, user = torch.randn(9, 4), torch.randn(3, 4)
    target, hard = torch.tensor([2, 2, 5]), torch.tensor([[2, 7], [3, 4], [5, 5]])
    frequency = torch.zeros(9)
    loss = info_nce(user, target, hard, table, frequency, 0.5)
    logits = user @ table.t() / 0.5
    expected = [
        torch.logsumexp(logits[0, [2, 5, 7]], 0) - logits[0, 2],
        torch.logsumexp(logits[1, [2, 5, 3, 4]], 0) - logits[1, 2],
        torch.logsumexp(logits[2, [5, 2, 2]], 0) - logits[2, 5],
    ]
    assert torch.allclose(loss, torch.stack(expected), atol=1e-5)


def test_dpo_is_log_two_at_the_reference_and_falls_as_the_chosen_gains() -> None:
    reference = torch.tensor([-3.0]), torch.tensor([-2.0])
    assert dpo(*reference, *reference, beta=0.1).item() == pytest.approx(math.log(2))
    assert dpo(reference[0] + 1, reference[1], *reference, beta=0.1).item() == pytest.approx(-math.log(1 / (1 + math.exp(-0.1))))
