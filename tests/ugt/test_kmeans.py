"""k-means: workers that share the rows give the centres of one; a large catalogue is fitted on a sample; few candidates a contested row are enough."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.kmeans import WHOLE, kmeans, move, nearest, sampled, share
from ugt.quantizer import CANDIDATES, assign_codes, fit_residual_kmeans, localise, quantise
from ugt.synthetic_vectors import clustered_vectors


class ThreadGroup:
    """Workers of one process; what they exchange lies in a list."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, table: list):
        self.rank, self.size, self._barrier, self._table = rank, size, barrier, table

    def _all(self, x):
        self._table[self.rank] = x
        self._barrier.wait()
        parts = list(self._table)
        self._barrier.wait()
        return parts

    def sum(self, x):
        return np.sum(self._all(np.array(x)), axis=0)

    def gather(self, x):
        return np.concatenate(self._all(np.array(x)))


def by_workers(size, work):
    """What each of `size` workers returns."""
    barrier, table = threading.Barrier(size, timeout=60), [None] * size
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(ThreadGroup(rank, size, barrier, table)), range(size)))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_share_the_rows_give_the_codebooks_of_one(workers):
    x, _ = clustered_vectors(700, 8, 3)

    def fit(group=None):
        options = {} if group is None else {"group": group}
        return localise(x, fit_residual_kmeans(x, 16, 8, 10, 0, 2.0, **options), 16, 2.0, 3, **options)

    one, several = fit(), by_workers(workers, fit)
    for books in several:
        assert np.allclose(books.l1_KD, one.l1_KD, atol=1e-5)  # float32 rounding of float64 sums in another order
        assert np.allclose(books.l2_KKD, one.l2_KKD, atol=1e-5)
    assert (quantise(x, several[0], 16, 2.0)[0] == quantise(x, one, 16, 2.0)[0]).all()


def test_centres_without_rows_move_to_the_farthest_rows_of_all_workers():
    x = np.array([[0.0], [1.0], [2.0], [50.0], [1.5], [90.0]], np.float32)
    start, code = np.array([[1.0], [-500.0], [-600.0]], np.float32), np.zeros(6, np.int64)

    def step(group):
        centres, mine = start.copy(), share(6, group)
        move(x[mine], code[mine], centres, group)
        return centres

    for centres in by_workers(3, step):
        assert centres[1:].ravel().tolist() == [90.0, 50.0]
        assert centres[0, 0] == pytest.approx(x.mean())


def slowly_assigned(x, centres, capacity):
    """Full distances of every contested row, one round after another."""
    distance = ((x[:, None, :].astype(np.float64) - centres[None]) ** 2).sum(-1)
    code = distance.argmin(1)
    count = np.bincount(code, minlength=len(centres))
    room, todo = np.where(count > capacity, capacity, capacity - count), [i for i in range(len(x)) if count[code[i]] > capacity]
    while todo:
        allowed = np.where(room > 0, distance, np.inf)
        choice = {i: int(np.argmin(allowed[i])) for i in todo}
        regret = {i: np.partition(allowed[i], 1)[1] - allowed[i][choice[i]] for i in todo}
        settled = []
        for k in set(choice.values()):
            settled += sorted((i for i in todo if choice[i] == k), key=lambda i: (-regret[i], i))[: room[k]]
        for i in settled:
            code[i] = choice[i]
            room[choice[i]] -= 1
        todo = [i for i in todo if i not in settled]
    return code


@settings(max_examples=20, deadline=None)
@given(k=st.sampled_from([2, 7, CANDIDATES - 1, CANDIDATES + 1, 3 * CANDIDATES]), slack=st.integers(0, 2), seed=st.integers(0, 10_000))
def test_few_candidates_a_row_send_it_where_all_distances_would(k, slack, seed):
    rng = np.random.default_rng(seed)
    # most rows near a few centres: their lists run full and are looked up again
    centres = rng.normal(size=(k, 3)).astype(np.float32)
    x = (centres[rng.integers(0, 2, 2 * k)] * 0.5 + 0.5 * rng.normal(size=(2 * k, 3))).astype(np.float32)
    assert assign_codes(x, centres, 2 + slack)[0].tolist() == slowly_assigned(x, centres, 2 + slack).tolist()


def test_every_row_counts_until_the_catalogue_is_large():
    x = np.arange(WHOLE + 5, dtype=np.float32)[:, None]
    assert sampled(x[:WHOLE], 4, np.random.default_rng(0)) is not None
    assert len(sampled(x[:WHOLE], 4, np.random.default_rng(0))) == WHOLE
    drawn = sampled(x, 4, np.random.default_rng(0))
    assert len(drawn) == WHOLE
    assert (np.diff(drawn.ravel()) > 0).all()  # in order, each at most once


@pytest.fixture
def small_is_large(monkeypatch):
    """A catalogue counts as large from 1,000 rows on, and gives 100 rows a code to the fit."""
    monkeypatch.setattr("ugt.kmeans.WHOLE", 1000)
    monkeypatch.setattr("ugt.kmeans.ROWS_PER_CODE", 100)


@pytest.mark.usefixtures("small_is_large")
def test_a_large_catalogue_is_named_without_collisions_twice_alike():
    x, _ = clustered_vectors(6000, 8, 0)

    def make():
        books = localise(x, fit_residual_kmeans(x, 32, 32, 10, 0, 2.0), 16, 2.0, 3)
        return quantise(x, books, 16, 2.0, np.arange(len(x)))

    (codes, figures), (again, _) = make(), make()
    assert (codes == again).all()
    assert len(np.unique(codes, axis=0)) == len(x)
    assert np.bincount(codes[:, 0]).max() <= 375  # twice the mean
    assert figures["explained_l2"] > figures["explained_l1"] > 0.4


@pytest.mark.usefixtures("small_is_large")
def test_balanced_steps_leave_fewer_items_in_their_second_choice():
    x, _ = clustered_vectors(6000, 8, 0)
    plain, balanced = (fit_residual_kmeans(x, 32, 4, 10, 0, balance) for balance in (np.inf, 1.3))
    over = [assign_codes(x, books.l1_KD, int(1.3 * 6000 / 32) + 1)[1].mean() for books in (plain, balanced)]
    assert over[1] < over[0]


def test_the_start_of_a_large_fit_finds_separated_clusters():
    rng = np.random.default_rng(0)
    means = 100 * rng.normal(size=(16, 3))
    x = (means[rng.integers(0, 16, WHOLE + 1)] + rng.normal(size=(WHOLE + 1, 3))).astype(np.float32)
    assert len(set(nearest(means.astype(np.float32), kmeans(x, 16, 1, rng)))) == 16
