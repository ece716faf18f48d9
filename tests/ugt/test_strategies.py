"""Diverse beam and nucleus: against the beam, the exact scorer, a choice made one by one, and the law of the samples; nothing illegal ever comes out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ugt.decoding import Beams, Constraints, beam_search, constraints, exact_log_probs
from ugt.gumbel import gumbel_noise
from ugt.model.config import ModelConfig
from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.model.ugt import IMPOSSIBLE, UGT
from ugt.schema import DecodingStrategy
from ugt.scoring import tensors
from ugt.semantic_ids import SemanticIds
from ugt.strategies import Sampling, diverse_beam, nucleus

USERS = 6
STRATEGIES: tuple[DecodingStrategy, ...] = ("beam", "diverse_beam", "nucleus")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(seed: int, items: int, k1: int, k2: int, sharpen: float = 6.0) -> UGT:
    """An untrained model with opinions, over a random trie of which many prefixes lead nowhere."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    group = rng.choice(rng.permutation(k1 * k2)[: max(1, k1 * k2 * 2 // 3)], items)
    third = np.array([(group[:i] == g).sum() for i, g in enumerate(group)])
    ids = SemanticIds.from_codes(np.stack([group // k2, group % k2, third], axis=1), [f"i{i:03d}" for i in range(items)], k1, k2, int(third.max()) + 3)
    made = UGT(ModelConfig(width=8, encoder_layers=1, max_length=6), ids, rng.normal(size=(items, 4)).astype(np.float32), UserVocabulary([], [])).eval()
    with torch.no_grad():
        for query in made.level_heads.query:
            query.weight *= sharpen
    return made


def _repeat(x: torch.Tensor, times: int) -> torch.Tensor:
    return x[:1].expand(times, *x.shape[1:]).contiguous()


class Request:
    """Encoded histories of some users, ready to be decoded in any way."""

    def __init__(self, model: UGT, limits: Constraints, seed: int = 1):
        rng, n = np.random.default_rng(seed), len(model.semantic_ids)
        histories = [History(rng.integers(0, n, k), rng.integers(1, 6, k), rng.random(k), np.zeros(k)) for k in rng.integers(0, 9, len(limits.filter_B))]
        inputs = tensors(build_inputs(histories, np.arange(len(histories)) * 30_000, np.zeros((len(histories), 3)), 6))
        with torch.inference_mode():
            tables = model.tables()
            self.model, self.batch = model, len(histories)
            self.given = (model, model.encode(inputs, tables), inputs["length_B"], inputs["context_B"], tables, limits)

    def repeated(self, times: int) -> Request:
        """The first request many times over."""
        model, *of_request, tables, limits = self.given
        many = Request(model, constraints(model, [[]]))
        many.batch = times
        rows = limits._replace(**{name: _repeat(getattr(limits, name), times) for name in ("exclude_BX", "filter_B", "prior_BK")})
        many.given = (model, *(_repeat(x, times) for x in of_request), tables, rows)
        return many

    @torch.inference_mode()
    def exact(self) -> torch.Tensor:
        return exact_log_probs(*self.given)

    @torch.inference_mode()
    def beam(self, width: int) -> Beams:
        return beam_search(*self.given, torch.arange(width), torch.arange(self.model.items.largest_group))

    @torch.inference_mode()
    def diverse(self, width: int, penalty: float) -> Beams:
        return diverse_beam(*self.given, torch.arange(width), torch.arange(self.model.items.largest_group), torch.full((self.batch,), penalty))

    @torch.inference_mode()
    def nucleus(self, width: int, top_p: float = 1.0, temperature: float = 1.0, seed: int = 0) -> Beams:
        items = self.model.items
        noise = gumbel_noise([seed * self.batch + row for row in range(self.batch)], items.k1, items.k2, items.largest_group, width)
        drawn = Sampling(torch.full((self.batch,), temperature), torch.full((self.batch,), top_p), *(torch.from_numpy(x) for x in noise))
        return nucleus(*self.given, torch.arange(width), torch.arange(items.largest_group), drawn)


@pytest.fixture(scope="module")
def model() -> UGT:
    return make_model(0, 120, 6, 8)


@pytest.fixture(scope="module")
def request_(model: UGT) -> Request:
    rng = np.random.default_rng(2)
    return Request(model, constraints(model, [rng.permutation(120)[: rng.integers(0, 30)] for _ in range(USERS)]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_illegal_comes_out_of_any_strategy_and_nothing_legal_is_left_out_of_a_long_list(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, batch = int(rng.integers(1, 60)), 3
    model = make_model(int(rng.integers(2**31)), items, int(rng.integers(2, 7)), int(rng.integers(2, 7)), float(rng.choice([1.0, 12.0])))
    exclude = [rng.choice(items, int(rng.integers(0, items + 1)), replace=False) for _ in range(batch)]
    allowed = rng.random(items) < rng.choice([0.0, 0.1, 0.5, 1.0])
    prior = torch.from_numpy(rng.normal(0, rng.choice([0.0, 2.0, 15.0]), (batch, model.items.k1)).astype(np.float32))
    request = Request(model, constraints(model, exclude, allowed, prior), seed)
    exact, width = request.exact(), int(rng.choice([1, 4, 11, 70]))
    decoded = {
        "beam": request.beam(width),
        "diverse_beam": request.diverse(width, float(rng.choice([0.0, 0.4, 3.0, 100.0]))),
        "nucleus": request.nucleus(width, float(rng.choice([0.0, 0.3, 0.9, 1.0])), float(rng.choice([0.1, 1.0, 3.0])), int(rng.integers(1000))),
    }
    for strategy, beams in decoded.items():
        for row in range(batch):
            legal = set(np.flatnonzero(allowed).tolist()) - set(exclude[row].tolist())
            listed = [i for i in beams.item_BW[row].tolist() if i >= 0]
            assert set(listed) <= legal, strategy
            assert len(set(listed)) == len(listed) == min(width, len(legal)), strategy
            assert beams.item_BW[row].tolist() == listed + [-1] * (width - len(listed)), strategy  # no gap
            assert torch.allclose(beams.log_prob_BW[row, : len(listed)], exact[row, listed], atol=2e-4, rtol=1e-5), strategy
        assert torch.allclose(beams.user_BD, decoded["beam"].user_BD)


@pytest.mark.parametrize("width", [1, 5, 40, 130])
def test_diverse_beam_without_penalty_is_beam_search(request_: Request, width: int) -> None:
    beam, diverse = request_.beam(width), request_.diverse(width, 0.0)
    assert torch.equal(beam.item_BW, diverse.item_BW)
    assert torch.equal(beam.log_prob_BW, diverse.log_prob_BW)


@pytest.mark.parametrize("penalty", [0.3, 2.0, 50.0])
def test_diverse_beam_is_the_choice_made_one_by_one(request_: Request, model: UGT, penalty: float) -> None:
    """The judge: at each step pick the best candidate W times, each time after subtracting the penalties of what has been picked."""
    width = 25
    exact, diverse, codes = request_.exact().double().numpy(), request_.diverse(width, penalty), model.semantic_ids.codes_N3
    for row in range(USERS):
        score = {tuple(codes[i]): s for i, s in enumerate(exact[row]) if s > IMPOSSIBLE / 2}
        kept: list[tuple[int, ...]] = [()]
        for level in range(1, 4):
            pool: dict[tuple[int, ...], float] = {}
            for triple in score:
                if triple[: level - 1] in kept:
                    pool[triple[:level]] = np.logaddexp(pool.get(triple[:level], -np.inf), score[triple])  # log-probability of a prefix: of all below
            kept = []
            while pool and len(kept) < width:
                best = max(pool, key=lambda p: pool[p] - penalty * sum((p[:1] == k[:1]) + (level == 3 and p[:2] == k[:2]) for k in kept))
                kept.append(best)
                del pool[best]
        listed = [tuple(codes[i].tolist()) for i in diverse.item_BW[row].tolist() if i >= 0]
        assert listed == [tuple(int(c) for c in k) for k in kept]


def test_a_larger_penalty_spreads_the_list_over_more_first_codes(request_: Request, model: UGT) -> None:
    codes = model.semantic_ids.codes_N3
    spread = [np.mean([len(set(codes[row[:6], 0])) for row in request_.diverse(40, penalty).item_BW.numpy()]) for penalty in (0.0, 1.0, 100.0)]
    assert spread[0] < spread[1] < spread[2] == model.items.k1  # one of each


def sampled_from(exact: np.ndarray, codes: np.ndarray, top_p: float, temperature: float) -> np.ndarray:
    """Probability of each item when every level is tempered, cut to its nucleus and normalised: the slow, obvious way."""
    q = np.ones(len(exact))
    for item in range(len(exact)):
        for level in range(3):
            under = [j for j in range(len(exact)) if (codes[j, :level] == codes[item, :level]).all() and exact[j] > IMPOSSIBLE / 2]
            mass = {int(c): sum(np.exp(exact[j]) for j in under if codes[j, level] == c) ** (1 / temperature) for c in codes[under, level]}
            kept: dict[int, float] = {}
            for c in sorted(mass, key=lambda c: -mass[c]):
                if sum(kept.values()) < top_p * sum(mass.values()):
                    kept[c] = mass[c]
            q[item] *= kept.get(int(codes[item, level]), 0.0) / sum(kept.values()) if kept else 0.0
    return q


def chi_square(observed: np.ndarray, probability: np.ndarray) -> float:
    """p-value; the cells that expect fewer than five are one."""
    expected = probability / probability.sum() * observed.sum()
    assert observed[expected == 0].sum() == 0
    often = expected >= 5
    cells = [np.append(x[often], x[~often].sum()) if expected[~often].sum() > 0 else x[often] for x in (observed, expected)]
    return float(stats.chisquare(*cells).pvalue)


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (1.0, 0.6), (0.5, 1.2)])
def test_nucleus_draws_without_replacement_in_proportion(top_p: float, temperature: float) -> None:
    """Chi-square over 12,000 draws: the first item, and the first two, follow the exact scorer's probabilities; the scores reported are the model's own."""
    model, draws = make_model(3, 12, 3, 3, 0.5 if top_p < 1 else 2.0), 8_000
    request = Request(model, constraints(model, [[4]]))
    exact = request.exact()[0].double().numpy()
    q = sampled_from(exact, model.semantic_ids.codes_N3, top_p, temperature)
    assert q.sum() == pytest.approx(1.0)
    assert q[4] == 0
    if top_p == temperature == 1.0:
        assert np.allclose(q, np.exp(exact), atol=1e-6)
    beams = request.repeated(draws).nucleus(3, top_p, temperature)
    drawn = beams.item_BW.numpy()
    assert chi_square(np.bincount(drawn[:, 0], minlength=12), q) > 1e-3
    pairs = np.array([[q[a] * q[b] / (1 - q[a]) if a != b else 0.0 for b in range(12)] for a in range(12)])
    seen = np.zeros((12, 12))
    np.add.at(seen, (drawn[:, 0], drawn[:, 1]), 1)
    assert chi_square(seen.flatten(), pairs.flatten()) > 1e-3
    assert np.allclose(beams.log_prob_BW.numpy(), exact[drawn], atol=1e-4)


def test_nucleus_of_nothing_begins_with_the_greedy_item_and_goes_on_like_the_beam(request_: Request, model: UGT) -> None:
    exact, codes = request_.exact().double().numpy(), model.semantic_ids.codes_N3
    for seed in (0, 1):
        beams, beam = request_.nucleus(40, top_p=0.0, seed=seed), request_.beam(40)
        for row in range(USERS):
            under = np.flatnonzero(exact[row] > IMPOSSIBLE / 2)
            for level in range(3):
                mass = np.bincount(codes[under, level], np.exp(exact[row, under]))
                under = under[codes[under, level] == mass.argmax()]
            assert beams.item_BW[row].tolist() == [int(under[0])] + [i for i in beam.item_BW[row].tolist() if i != under[0]]


def test_the_nucleus_comes_first_and_the_most_probable_rest_fills_up(request_: Request) -> None:
    exact, beams = request_.exact(), request_.nucleus(90, top_p=0.5)
    assert all(len(set(row)) == 90 for row in beams.item_BW.tolist())
    rest = exact.gather(1, beams.item_BW)[:, 60:]  # 0.5^3 of the probability is spent long before
    assert (rest[:, 1:] <= rest[:, :-1]).all()
    head = exact.gather(1, beams.item_BW)[:, :5]
    assert not (head[:, 1:] <= head[:, :-1]).all()


def test_equal_seeds_give_equal_samples_and_a_wider_beam_begins_with_the_same_ones(request_: Request) -> None:
    one, again, other, wide = (request_.nucleus(w, 0.9, 1.0, seed).item_BW for w, seed in ((7, 5), (7, 5), (7, 6), (30, 5)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    inside = request_.nucleus(7, 1.0, 1.0, 5).item_BW, request_.nucleus(30, 1.0, 1.0, 5).item_BW[:, :7]
    assert torch.equal(*inside)
    assert len(wide[0].unique()) == 30


def test_a_prior_on_level_one_reaches_every_strategy(model: UGT) -> None:
    prior = torch.full((USERS, model.items.k1), -30.0)
    prior[:, 3] = 30.0
    request = Request(model, constraints(model, [[]] * USERS, prior_BK=prior))
    under = set(model.semantic_ids.with_prefix(3).tolist())
    for beams in (request.beam(5), request.diverse(5, 0.5), request.nucleus(5)):
        assert set(beams.item_BW.flatten().tolist()) <= under
