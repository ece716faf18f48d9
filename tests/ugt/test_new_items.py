"""The rule of the slot: weights that find the signal that speaks, a gate that keeps its promise, and lists that change in one place."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ugt.insertion import Near
from ugt.new_items import SIGNALS, Gate, Signals, inherited_transitions, with_slot

RNG = np.random.default_rng(0)


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
