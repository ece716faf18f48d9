"""The model: causal, blind to padding, the same in training and in decoding, its probabilities those of items only."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ugt.decoding import exact_log_probs, no_constraints
from ugt.model.config import ModelConfig
from ugt.model.dropout import Dropout
from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.model.moe import MixtureOfExperts
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.scoring import tensors
from ugt.semantic_ids import SemanticIds

ITEMS, K = 60, 4


def catalogue() -> SemanticIds:
    codes = np.array([(i % K, i // K % 3, i // (3 * K)) for i in range(ITEMS)])  # one L2 in four leads nowhere
    return SemanticIds.from_codes(codes, [f"i{i:03d}" for i in range(ITEMS)], K, K, 8)


@pytest.fixture(scope="module")
def model() -> UGT:
    torch.manual_seed(0)
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32)
    config = ModelConfig(width=16, encoder_layers=2, decoder_layers=2, max_length=12, shared_expert=True)
    return UGT(config, catalogue(), vectors, UserVocabulary(["F", "M"], ["artist"])).eval()


def requests(lengths: list[int], seed: int = 1) -> list[History]:
    rng = np.random.default_rng(seed)
    return [
        History(rng.integers(0, ITEMS, n), rng.integers(1, 6, n), rng.integers(1, 6, n) * 1.0, 10**9 + np.cumsum(rng.integers(1, 10**5, n))) for n in lengths
    ]


def states(model: UGT, histories: list[History]) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(tensors(build_inputs(histories, [0] * len(histories), np.zeros((len(histories), 3)), 12)), model.tables())


def test_a_state_knows_nothing_of_later_events(model: UGT) -> None:
    (history,) = requests([9])
    cut = History(*(x[:5] for x in history))
    assert torch.allclose(states(model, [history])[0, :6], states(model, [cut])[0], atol=1e-6)


def test_a_history_has_the_same_states_alone_and_in_a_padded_batch(model: UGT) -> None:
    histories = requests([3, 11, 0])
    together = states(model, histories)
    for row, history in enumerate(histories):
        n = len(history.items)
        assert torch.allclose(together[row, : n + 1], states(model, [history])[0, : n + 1], atol=1e-6)


def test_training_and_decoding_give_an_item_the_same_probability(model: UGT) -> None:
    """Fault 4: the pass over all positions at once, and the exact scorer that goes step by step, on every position of a batch."""
    histories = requests([7, 4])
    inputs = tensors(build_inputs(histories, [0, 0], np.zeros((2, 3)), 12))
    position = torch.tensor([[0, 3, 7], [1, 2, 4]])
    context = torch.tensor([[1, 2, 3], [0, 5, 8]])
    target = torch.tensor([[5, 60, 1], [17, 0, 33]])  # 0: no target there
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.repeats.group.fill_(-0.3)
        model.repeats.item.fill_(0.4)
        tables = model.tables()
        state = model.encode(inputs, tables)
        log_prob, _ = model.path_log_probs(state, position, context, target, tables, inputs["item_BL"])
        expected = []
        for q in range(3):
            before = torch.where(torch.arange(inputs["item_BL"].shape[1]) < position[:, q : q + 1], inputs["item_BL"], 0)
            limits = no_constraints(model, 2)._replace(read_BL=before)
            every = exact_log_probs(model, state, position[:, q], context[:, q], tables, limits)
            assert torch.allclose(every.exp().sum(1), torch.ones(2), atol=1e-5)  # nothing is given to codes that lead to no item
            expected.append(every)
    pairs = [(b, q) for b in range(2) for q in range(3) if target[b, q] > 0]
    wanted = torch.stack([expected[q][b, target[b, q] - 1] for b, q in pairs])
    assert torch.allclose(log_prob.sum(1), wanted, atol=1e-5)


def test_padding_takes_no_part_in_training(model: UGT) -> None:
    """Places without a target, more of them or fewer, change neither probabilities nor the load of the experts."""
    trained = copy.deepcopy(model).train()
    for module in trained.modules():
        if isinstance(module, Dropout | MixtureOfExperts):
            module.p = module.jitter = 0.0
    inputs = tensors(build_inputs(requests([7, 4]), [0, 0], np.zeros((2, 3)), 12))
    position, context, target = torch.tensor([[0, 3, 7], [1, 2, 4]]), torch.tensor([[1, 2, 3], [0, 5, 8]]), torch.tensor([[5, 60, 1], [17, 0, 33]])
    wide = [torch.cat([x, torch.zeros(2, 9, dtype=torch.int64)], dim=1) for x in (position, context, target)]
    tables = trained.tables()
    state = trained.encode(inputs, tables)
    (narrow, balance), (padded, padded_balance) = (trained.path_log_probs(state, *x, tables, inputs["item_BL"]) for x in ((position, context, target), wide))
    assert torch.allclose(narrow, padded, atol=1e-5)
    assert balance.item() == pytest.approx(padded_balance.item(), abs=1e-6)


def test_level_three_logits_are_the_same_for_legal_slots_alone(model: UGT) -> None:
    h, item = torch.randn(20, 16), torch.randint(1, ITEMS + 1, (20, 5))
    legal = torch.rand(20, 5) < 0.6
    item_ID = model.tables().item_ID
    expected = model.level_heads.third(h, item_ID[item])
    assert torch.allclose(model.level_heads.third_of_legal(h, item, legal, item_ID), expected.masked_fill(~legal, 0.0), atol=1e-5)


def test_level_two_logits_are_the_same_for_few_paths_and_for_many(model: UGT) -> None:
    h, l1 = torch.randn(20, 16), torch.randint(0, K, (20,))
    with torch.no_grad():
        group = model.tables().group_GD
        assert torch.allclose(model.level_heads.second(h, l1, group), model.level_heads.second_sorted(h, l1, group), atol=1e-5)


def test_an_item_row_is_the_sum_of_its_parts_and_row_zero_is_nothing(model: UGT) -> None:
    with torch.no_grad():
        tables = model.tables()
        l1, l2, l3 = model.semantic_ids.code_of(23)
        parts = [e.weight[c] for e, c in zip(model.items.codes, (l1, l2, l3), strict=True)]
        row = sum(parts) + model.items.free.weight[23] + model.items.project(model.items.vector_NV[23])
    assert torch.allclose(tables.item_ID[24], row, atol=1e-6)
    assert not tables.item_ID[0].any()
    members = model.semantic_ids.with_prefix(l1, l2)
    assert torch.allclose(tables.group_GD[l1 * K + l2], tables.item_ID[1:][torch.from_numpy(members)].mean(0), atol=1e-6)


def test_experts_give_the_same_answer_dispatched_and_all_computed() -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(ModelConfig(width=8, experts=4, experts_per_token=2, capacity_factor=4.0, router_jitter=0.0, decoder_dropout=0.0))
    x = torch.randn(5, 7, 8)
    assert torch.allclose(moe.train()(x)[0], moe.eval()(x)[0], atol=1e-6)


def test_an_expert_over_capacity_leaves_out_the_tokens_with_the_smallest_gates() -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(ModelConfig(width=8, experts=4, experts_per_token=1, capacity_factor=1.0, router_jitter=0.0, decoder_dropout=0.0)).train()
    torch.nn.init.zeros_(moe.router.weight)
    y, balance = moe(torch.randn(40, 8))  # all tie: top-1 sends every token to one expert, which takes 10
    assert int((y.abs().sum(1) > 0).sum()) == 10
    assert balance.item() == pytest.approx(1.0)  # even probabilities; the load term alone can't raise it
    torch.nn.init.normal_(moe.router.weight, std=50)
    assert moe(torch.ones(40, 8))[1].item() == pytest.approx(4.0, abs=1e-3)  # collapsed: E


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="not a multiple of heads"):
        ModelConfig(width=10, heads=4)
    with pytest.raises(ValidationError, match="more than experts"):
        ModelConfig(experts=2, experts_per_token=3)
    with pytest.raises(UGTError, match="item vectors: 3 rows for 60 items"):
        UGT(ModelConfig(), catalogue(), np.zeros((3, 4), np.float32), UserVocabulary([], []))


def test_rows_that_training_never_read_get_the_mean_of_those_it_read(model: UGT) -> None:
    changed = copy.deepcopy(model)
    before = model.history.action.weight.detach()
    changed.settle_unread({"action": [np.array([2, 5])], "context": [np.arange(model.context.moment.num_embeddings)], "user": [np.array([0])] * 3})
    after = changed.history.action.weight.detach()
    assert torch.equal(after[[2, 5]], before[[2, 5]])
    assert torch.allclose(after[1], before[[2, 5]].mean(0))
    assert torch.equal(changed.context.moment.weight, model.context.moment.weight)
    assert torch.equal(changed.history.user[0].weight[1], model.history.user[0].weight[0])
