"""Fault 6: a term that is configured reaches the gradient; one that isn't does not appear. And what DPO rejects is what it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.stages import StageObjective, distinct
from train.windows import TrainingWindows
from ugt.histories import Histories
from ugt.model.config import ModelConfig, StageConfig, TrainingConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.scoring import tensors
from ugt.semantic_ids import SemanticIds

ITEMS = 48
OFF = {"ntp_weight": 0.0, "dense_weight": 0.0, "balance_weight": 0.0, "contrastive_weight": 0.0, "dpo_weight": 0.0}
TRAINING = TrainingConfig(contrastive_positions=16, dpo_beam=6, dense_negatives=8)


@pytest.fixture
def model() -> UGT:
    torch.manual_seed(0)
    codes = np.array([(i % 3, i // 3 % 4, i // 12) for i in range(ITEMS)])
    ids = SemanticIds.from_codes(codes, [f"i{i:02d}" for i in range(ITEMS)], 3, 4, 8)
    return UGT(ModelConfig(width=16, max_length=6), ids, np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32), UserVocabulary([], []))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(ITEMS)[:10] for _ in range(6)]).astype(np.int32)
    histories = Histories([f"u{i}" for i in range(6)], np.arange(0, 61, 10), items, items * 0 + 1, items * 0 + np.float32(4), items.astype(np.int64) * 0)
    windows = TrainingWindows(histories.split(3), np.zeros((6, 3), np.int64), 6, 0.5, 12, 0)
    return tensors(windows.batch(windows.epoch(0)[0]).inputs)


def objective(model: UGT, **weights: float) -> StageObjective:
    return StageObjective(model, StageConfig(**(OFF | weights)), TRAINING, torch.ones(ITEMS)).train()


def gradients(model: UGT, loss: torch.Tensor) -> dict[str, float]:
    model.zero_grad()
    loss.backward()
    return {name: float(p.grad.abs().sum()) for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("term", "part"),
    [
        ("ntp", "level_heads.query.2.weight"),
        ("ntp", "decoder.blocks.0.experts.up_EDF"),
        ("dense", "dense_head.out.weight"),
        ("balance", "decoder.blocks.0.experts.router.weight"),
        ("contrastive", "dense_head.out.weight"),
        ("dpo", "level_heads.query.0.weight"),
    ],
)
def test_a_configured_term_reaches_the_gradient(model: UGT, batch: dict[str, torch.Tensor], term: str, part: str) -> None:
    if term == "dpo":  # at the reference the gradient of DPO is there too, but dropout alone must not be what makes it
        model.eval()
    terms = objective(model, **{f"{term}_weight": 0.7})(batch)
    assert set(terms) == {term, "loss"}
    assert terms["loss"].item() == pytest.approx(0.7 * terms[term].item(), rel=1e-5)
    moved = gradients(model, terms["loss"])
    assert moved[part] > 0
    assert moved["items.free.weight"] > 0


def test_a_term_of_weight_zero_does_not_appear(model: UGT, batch: dict[str, torch.Tensor]) -> None:
    assert set(objective(model, ntp_weight=1.0, dense_weight=1.0)(batch)) == {"ntp", "dense", "loss"}


def test_the_loss_is_the_weighted_sum_of_its_terms(model: UGT, batch: dict[str, torch.Tensor]) -> None:
    weights = {"ntp": 1.0, "dense": 0.5, "balance": 0.1, "contrastive": 0.3, "dpo": 0.2}
    terms = objective(model, **{f"{name}_weight": w for name, w in weights.items()})(batch)
    assert terms["loss"].item() == pytest.approx(sum(w * terms[name].item() for name, w in weights.items()), rel=1e-5)


def test_the_levels_weigh_in_the_loss_what_the_setting_says(model: UGT, batch: dict[str, torch.Tensor]) -> None:
    def ntp(*level_weights: float) -> float:
        training = TRAINING.model_copy(update={"level_weights": level_weights})
        return StageObjective(model, StageConfig(**(OFF | {"ntp_weight": 1.0})), training, torch.ones(ITEMS)).eval()(batch)["ntp"].item()

    first, second, third = ntp(1, 0, 0), ntp(0, 1, 0), ntp(0, 0, 1)
    assert min(first, second, third) > 0
    assert ntp(0.5, 0.3, 0.2) == pytest.approx(0.5 * first + 0.3 * second + 0.2 * third, rel=1e-5)


def test_the_reference_of_dpo_stays_what_it_was_and_is_no_parameter(model: UGT, batch: dict[str, torch.Tensor]) -> None:
    stage = objective(model, dpo_weight=1.0)
    before = {name: p.clone() for name, p in stage._reference[0].state_dict().items()}
    optimizer = torch.optim.SGD(stage.parameters(), lr=1.0)
    stage(batch)["loss"].backward()
    optimizer.step()
    after = stage._reference[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(list(stage.parameters())) == len(list(model.parameters()))
    assert any(not torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_dpo_rejects_an_item_near_the_target_that_the_user_never_had(model: UGT, batch: dict[str, torch.Tensor]) -> None:
    stage = objective(model, dpo_weight=1.0)
    object.__setattr__(stage, "training_config", TRAINING.model_copy(update={"dpo_beam": ITEMS}))
    position, context, target = (batch[name][:, :1] for name in ("position_BQ", "context_BQ", "target_BQ"))
    rejected = stage.rejected(batch, position[:, 0], context[:, 0], target)
    assert model.training
    for row in range(len(target)):
        had = set(batch["item_BL"][row].tolist()) | set(batch["target_BQ"][row].tolist())
        assert int(rejected[row]) not in had
        siblings = set((model.semantic_ids.with_prefix(*model.semantic_ids.code_of(int(target[row]) - 1)[:2]) + 1).tolist()) - had
        if siblings:  # with the whole catalogue in the beam, the longest shared prefix is (L1, L2)
            assert int(rejected[row]) in siblings


def test_distinct_keeps_each_value_once() -> None:
    assert distinct(torch.tensor([[3, 0, 3, 5, 0, 3]])).tolist() == [[0, 0, 3, 0, 0, 5]]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_worker_without_a_window_adds_nothing_and_stays_finite(model: UGT, batch: dict[str, torch.Tensor], stage: int) -> None:
    """The last step of an epoch may have fewer windows than there are workers or parts."""
    added = {1: {}, 2: {"contrastive_weight": 0.1}, 3: {"dpo_weight": 0.1}}[stage]
    made = objective(model, ntp_weight=1.0, dense_weight=1.0, balance_weight=0.1, **added)
    terms = made(batch | {"target_BQ": torch.zeros_like(batch["target_BQ"])})
    terms["loss"].backward()
    assert {name: value.item() for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
