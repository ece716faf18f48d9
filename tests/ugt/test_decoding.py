"""The beam against the exact scorer, and what a request forbids or prefers inside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ugt.decoding import Beams, Constraints, beam_search, best, constraints, exact_log_probs
from ugt.model.config import ModelConfig
from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.model.ugt import IMPOSSIBLE, UGT
from ugt.scoring import tensors
from ugt.semantic_ids import SemanticIds

ITEMS, K1, K2, USERS = 150, 6, 8, 24


@pytest.fixture(scope="module")
def model() -> UGT:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    group = rng.integers(0, K1 * K2, ITEMS)
    third = np.array([(group[:i] == g).sum() for i, g in enumerate(group)])
    codes = np.stack([group // K2, group % K2, third], axis=1)
    vectors = rng.normal(size=(ITEMS, 5)).astype(np.float32)
    ids = SemanticIds.from_codes(codes, [f"i{i:03d}" for i in range(ITEMS)], K1, K2, 16)
    model = UGT(ModelConfig(width=16, max_length=10), ids, vectors, UserVocabulary([], [])).eval()
    with torch.no_grad():
        for query in model.level_heads.query:  # an untrained model has no opinion to search for
            query.weight *= 6
        for bias, value in ((model.repeats.group, -0.2), (model.repeats.item, -0.3)):
            bias.fill_(value)
    return model


def search(model: UGT, limits: Constraints, width: int) -> tuple[Beams, torch.Tensor]:
    """Beams, and the exact log-probability of every item."""
    rng = np.random.default_rng(1)
    histories = [History(rng.integers(0, ITEMS, n), rng.integers(1, 6, n), rng.random(n), np.zeros(n)) for n in rng.integers(0, 14, len(limits.filter_B))]
    inputs = tensors(build_inputs(histories, np.arange(len(histories)) * 30_000, np.zeros((len(histories), 3)), 10))
    limits = limits._replace(read_BL=inputs["item_BL"])
    with torch.inference_mode():
        tables = model.tables()
        state = model.encode(inputs, tables)
        given = (model, state, inputs["length_B"], inputs["context_B"], tables, limits)
        return beam_search(*given, torch.arange(width), torch.arange(model.items.largest_group)), exact_log_probs(*given)


def seen(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.permutation(ITEMS)[: rng.integers(0, count)] for _ in range(USERS)]


def test_a_beam_as_wide_as_the_catalogue_is_the_exact_ranking(model: UGT) -> None:
    exclude = seen(60)
    beams, exact = search(model, constraints(model, exclude), ITEMS)
    for row in range(USERS):
        live = beams.item_BW[row] >= 0
        items = beams.item_BW[row][live]
        assert sorted(items.tolist()) == sorted(set(range(ITEMS)) - set(exclude[row].tolist()))  # every legal item once, and nothing else
        assert torch.allclose(beams.log_prob_BW[row][live], exact[row][items], atol=1e-4)
        assert exact[row].exp().sum() == pytest.approx(1.0, abs=1e-4)  # normalised over what the request may get


def test_a_narrow_beam_finds_the_exact_top_ten(model: UGT) -> None:
    beams, exact = search(model, constraints(model, seen(30)), 50)
    same = (exact.topk(10).indices == beams.item_BW[:, :10]).all(1)
    assert same.float().mean() >= 0.9  # 48 groups, weights at random: the bar of the trained model is in the benchmark


def test_a_filter_leaves_only_its_items(model: UGT) -> None:
    allowed = np.arange(ITEMS) % 5 == 0
    beams, _ = search(model, constraints(model, seen(20), allowed), 50)
    found = beams.item_BW[beams.item_BW >= 0]
    assert (found % 5 == 0).all()
    assert len(found) > 0


def test_requests_of_a_batch_may_have_different_filters(model: UGT) -> None:
    even, odd = (constraints(model, [[]] * USERS, np.arange(ITEMS) % 2 == r) for r in (0, 1))
    mixed = Constraints(
        even.exclude_BX,
        torch.arange(USERS) % 2,
        torch.cat([even.slot_allowed_FS, odd.slot_allowed_FS]),
        torch.cat([even.group_live_FG, odd.group_live_FG]),
        even.prior_BK,
        torch.cat([even.first_live_FK, odd.first_live_FK]),
        even.read_BL,
    )
    beams, _ = search(model, mixed, 30)
    for row in range(USERS):
        assert (beams.item_BW[row][beams.item_BW[row] >= 0] % 2 == row % 2).all()


def test_nothing_is_invented_when_nothing_is_legal(model: UGT) -> None:
    beams, _ = search(model, constraints(model, [np.arange(ITEMS)] * USERS), 5)
    assert (beams.item_BW == -1).all()
    beams, _ = search(model, constraints(model, [np.arange(1, ITEMS)] * USERS), 5)
    assert beams.item_BW.tolist() == [[0, -1, -1, -1, -1]] * USERS


def test_an_item_both_filtered_and_excluded_is_subtracted_once(model: UGT) -> None:
    first = model.semantic_ids.with_prefix(*model.semantic_ids.code_of(0)[:2])
    allowed = ~np.isin(np.arange(ITEMS), first[1:])
    beams, _ = search(model, constraints(model, [first[1:]] * USERS, allowed), ITEMS)
    assert (beams.item_BW == int(first[0])).any(1).all()


def test_a_prior_moves_probability_to_its_codes(model: UGT) -> None:
    limits = constraints(model, [[]] * USERS)
    _, plain = search(model, limits, 5)
    prior = torch.zeros(USERS, K1)
    prior[:, 2] = 1.5
    _, moved = search(model, limits._replace(prior_BK=prior), 5)
    under = torch.from_numpy(model.semantic_ids.with_prefix(2))
    odds = [(x[:, under].exp().sum(1) / (1 - x[:, under].exp().sum(1))).log() for x in (plain, moved)]
    assert torch.allclose(odds[1] - odds[0], torch.full((USERS,), 1.5), atol=1e-3)


def test_equal_scores_go_to_the_earlier_place() -> None:
    values, places = best(torch.tensor([[1.0, 3.0, 3.0, IMPOSSIBLE, 3.0]]), 4)
    assert places.tolist() == [[1, 2, 4, 0]]
    assert values.tolist() == [[3.0, 3.0, 3.0, 1.0]]
