"""Weights that find the signal that speaks."""

from __future__ import annotations

import numpy as np

from ugt.conditional_logit import ConditionalLogit

RNG = np.random.default_rng(0)


def test_the_logit_follows_the_signal_that_speaks() -> None:
    signal_UMS = RNG.normal(size=(400, 30, 3)) * [1, 5, 1] + [0, 9, 0]
    target_U = np.argmax(2 * signal_UMS[:, :, 2] + RNG.gumbel(size=(400, 30)), axis=1)
    logit = ConditionalLogit.fit(signal_UMS, target_U, np.zeros((400, 30), bool))
    assert 1.6 < logit.weight_S[2] < 2.4  # 2, and four standard errors
    assert np.abs(logit.weight_S[:2]).max() < 0.3
    score_M = logit.score(signal_UMS[0], np.array([int(np.argmax(logit.score(signal_UMS[0], np.array([], int))))]))
    assert np.isneginf(score_M).sum() == 1


def test_what_nobody_may_get_teaches_nothing() -> None:
    signal_UMS = RNG.normal(size=(200, 10, 1))
    forbidden_UM = np.zeros((200, 10), bool)
    best_U = signal_UMS[:, :, 0].argmax(1)
    forbidden_UM[np.arange(200), best_U] = True
    second_U = np.argsort(signal_UMS[:, :, 0], axis=1)[:, -2]
    assert ConditionalLogit.fit(signal_UMS, second_U, forbidden_UM).weight_S[0] > 3  # the best of those allowed, always
    assert ConditionalLogit.fit(signal_UMS, second_U, np.zeros((200, 10), bool)).weight_S[0] < 3


def test_a_signal_that_never_differs_gets_no_weight_and_padding_does_not_count() -> None:
    signal_UMS = RNG.normal(size=(200, 8, 2)) * [1, 0] + [0, 3]
    target_U = signal_UMS[:, :, 0].argmax(1)
    padded_UMS, beyond_UM = np.full((200, 12, 2), 1e3), np.ones((200, 12), bool)
    padded_UMS[:, :8], beyond_UM[:, :8] = signal_UMS, False
    plain, padded = ConditionalLogit.fit(signal_UMS, target_U, np.zeros((200, 8), bool)), ConditionalLogit.fit(padded_UMS, target_U, beyond_UM)
    assert plain.weight_S[1] == 0
    assert np.allclose(plain.weight_S, padded.weight_S, rtol=1e-3)
