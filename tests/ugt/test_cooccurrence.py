"""Co-occurrence vectors: counts against a plain loop, the factorisation against the matrix, and no event of validation or test in them."""

from __future__ import annotations

import math

import numpy as np

from ugt.cooccurrence import factorise, fill, ppmi
from ugt.histories import Histories


def histories_of(rows: list[list[int]]) -> Histories:
    items = np.array([i for row in rows for i in row], np.int32)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    zeros = np.zeros(len(items))
    return Histories([str(u) for u in range(len(rows))], offsets, items, zeros.astype(np.int32), zeros.astype(np.float32), zeros.astype(np.int64))


def random_histories(seed: int = 0) -> tuple[list[list[int]], Histories]:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(20)[: rng.integers(3, 12)].tolist() for _ in range(60)]
    return rows, histories_of(rows)


def test_ppmi_equals_a_plain_loop() -> None:
    rows, histories = random_histories()
    lengths = np.array([len(row) - 2 for row in rows])
    count = np.zeros((20, 20))
    for row, length in zip(rows, lengths, strict=True):
        for a in range(length):
            for b in range(a + 1, min(length, a + 4)):
                count[row[a], row[b]] += 1 / (b - a)
                count[row[b], row[a]] += 1 / (b - a)
    degree = count.sum(1) + 1
    expected = np.zeros((20, 20))
    for i in range(20):
        for j in range(20):
            if count[i, j]:
                expected[i, j] = max(0.0, math.log(count[i, j] * degree.sum() / (degree[i] * degree[j])))
    np.testing.assert_allclose(ppmi(histories, lengths, 20, 3).toarray(), expected, atol=1e-12)


def test_the_last_two_events_of_a_user_change_nothing() -> None:
    rows, histories = random_histories()
    lengths = np.array([len(row) - 2 for row in rows])
    other = histories_of([[*row[:-2], 19 - row[-1], 0] for row in rows])
    assert (ppmi(histories, lengths, 20, 3) != ppmi(other, lengths, 20, 3)).nnz == 0


def test_the_factors_are_those_of_a_full_decomposition_and_the_same_again() -> None:
    rows, histories = random_histories()
    matrix = ppmi(histories, np.array([len(row) for row in rows]), 20, 3)
    x = factorise(matrix, 6, seed=0)
    u, s, _ = np.linalg.svd(matrix.toarray())
    slow = u[:, :6] * np.sqrt(s[:6])
    # vectors are compared by their products, which no rotation of equal singular values changes
    scale = np.median(np.linalg.norm(slow, axis=1))
    np.testing.assert_allclose(x @ x.T, slow @ slow.T / scale**2, atol=1e-4)
    assert (factorise(matrix, 6, seed=0) == x).all()


def test_an_item_never_seen_gets_the_direction_of_its_metadata_neighbours() -> None:
    x = np.array([[2.0, 0], [1.0, 0], [0, 1.0], [0, 0]], np.float32)
    filled, near = fill(x, [["GEN_a"], ["GEN_a"], ["GEN_b"], ["GEN_a"]], np.array([3, 2, 1, 0]))
    np.testing.assert_allclose(filled[3], [1, 0], atol=1e-6)
    np.testing.assert_allclose(near.vector(["GEN_b"]), [0, 1], atol=1e-6)
    assert (filled[:3] == x[:3]).all()
