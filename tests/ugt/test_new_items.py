"""The rule of the slot: weights that find the signal that speaks, a gate that keeps its promise, and lists that change in one place."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ugt.insertion import Near
from ugt.new_items import OLD_SIGNALS, SIGNALS, Gate, Mix, Signals, inherited_transitions, with_slot

RNG = np.random.default_rng(0)


def test_the_mix_follows_the_signal_that_speaks() -> None:
    signal_UMS = RNG.normal(size=(400, 30, 3)) * [1, 5, 1] + [0, 9, 0]
    target_U = np.argmax(2 * signal_UMS[:, :, 2] + RNG.gumbel(size=(400, 30)), axis=1)
    mix = Mix.fit(signal_UMS, target_U, np.zeros((400, 30), bool))
    assert 1.6 < mix.weight_S[2] < 2.4  # 2, and four standard errors
    assert np.abs(mix.weight_S[:2]).max() < 0.3
    score_M = mix.score(signal_UMS[0], np.array([int(np.argmax(mix.score(signal_UMS[0], np.array([], int))))]))
    assert np.isneginf(score_M).sum() == 1


def test_a_new_item_nobody_may_get_does_not_teach_the_mix() -> None:
    signal_UMS = RNG.normal(size=(200, 10, 1))
    forbidden_UM = np.zeros((200, 10), bool)
    best_U = signal_UMS[:, :, 0].argmax(1)
    forbidden_UM[np.arange(200), best_U] = True
    second_U = np.argsort(signal_UMS[:, :, 0], axis=1)[:, -2]
    assert Mix.fit(signal_UMS, second_U, forbidden_UM).weight_S[0] > 3  # the best of those allowed, always
    assert Mix.fit(signal_UMS, second_U, np.zeros((200, 10), bool)).weight_S[0] < 3


def test_the_gate_takes_more_hits_than_chance_for_the_loss_it_is_allowed() -> None:
    evidence_UE = RNG.normal(size=(6000, 3))
    gained_U = RNG.random(6000) < 0.1 / (1 + np.exp(-2 * evidence_UE[:, 0]))
    lost_U = ~gained_U & (RNG.random(6000) < 0.1 / (1 + np.exp(-2 * evidence_UE[:, 1])))
    gate = Gate.fit(evidence_UE, gained_U, lost_U, hits=2 * int(lost_U.sum()), most=0.1)  # a fifth of what an open gate loses
    open_U = gate.opens(evidence_UE)
    assert (lost_U & open_U).sum() <= 0.25 * lost_U.sum()  # fitted on others: near the promise, not below it by right
    assert (gained_U & open_U).sum() > 0.35 * gained_U.sum()
    assert not Gate.fit(evidence_UE, gained_U, lost_U, hits=0, most=0.1).opens(evidence_UE).mean() > 0.2


def test_the_slot_is_the_last_place_and_nothing_else_moves() -> None:
    lists = np.stack([np.arange(12), np.r_[np.arange(4), np.full(8, -1)], np.arange(12)])
    found = with_slot(lists, np.array([50, 51, 52]), np.array([True, True, False]))
    assert found[0].tolist() == [*range(9), 50]
    assert found[1].tolist() == [0, 1, 2, 3, 51, -1, -1, -1, -1, -1]
    assert found[2].tolist() == list(range(10))


def test_a_new_item_inherits_the_transitions_of_its_neighbours() -> None:
    counts = sp.csr_matrix(np.arange(9, dtype=float).reshape(3, 3))
    near = Near(np.array([[0, 2]]), np.array([[0.25, 0.75]], np.float32))
    dense = inherited_transitions(counts, near).toarray()
    to_new = counts.toarray() @ np.array([0.25, 0, 0.75])
    assert np.allclose(dense[:, 3], [*to_new, 0.25 * to_new[0] + 0.75 * to_new[2]])
    assert np.allclose(dense[3, :3], 0.25 * counts.toarray()[0] + 0.75 * counts.toarray()[2])
    assert (dense[:3, :3] == counts.toarray()).all()


def test_signals_of_an_empty_history_are_finite_and_of_a_like_one_are_high() -> None:
    content = np.eye(4, dtype=np.float32)[[0, 1, 0, 1]]  # items 2 and 3 are new: like 0 and like 1
    near = Near(np.array([[0, 1], [1, 0]]), np.array([[0.9, 0.1], [0.9, 0.1]], np.float32))
    signals = Signals(content, content, inherited_transitions(sp.csr_matrix((2, 2)), near), np.ones((4, 3), np.float32), near)
    assert np.isfinite(signals.of(np.array([], int), np.ones(3, np.float32))).all()
    found = signals.of(np.array([1, 0]), np.ones(3, np.float32))
    for name in ("content_nearest", "content_mean", "cooccurrence"):
        assert found[0, SIGNALS.index(name)] > found[1, SIGNALS.index(name)], name  # the last event was like the first new item


def test_old_items_are_judged_by_what_followed_the_history_as_well() -> None:
    content = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]  # item 3 is new
    near = Near(np.array([[0]]), np.array([[1.0]], np.float32))
    counts = sp.csr_matrix(np.array([[0, 7, 1], [0, 0, 0], [0, 0, 0]], float))
    signals = Signals(content, content, inherited_transitions(counts, near), np.ones((4, 3), np.float32), near)
    for history in ([0], [3]):  # the new item has the company of its one neighbour
        found = signals.of_old(np.array(history), np.array([1, 2]), np.array([0.5, 0.25]))
        assert np.allclose(found[:, OLD_SIGNALS.index("fused")], [0.5, 0.25])
        assert np.allclose(found[:, OLD_SIGNALS.index("transitions")], np.log([7.05, 1.05]))
