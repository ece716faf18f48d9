"""Residual quantisation: capacities hold, nobody collides, the same seed gives the same codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.kmeans import distances, kmeans, nearest
from ugt.quantizer import Codebooks, assign_codes, fit_residual_kmeans, localise, quantise
from ugt.rq_vae import fit_rq_vae
from ugt.schema import UGTError


def clusters(n: int = 400, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(16, d))[rng.integers(16, size=n)] * 3 + rng.normal(size=(n, d))).astype(np.float32)


def test_nearest_is_the_nearest():
    x, centres = clusters(), clusters(10, seed=1)
    slow = [min(range(10), key=lambda k: ((row - centres[k]) ** 2).sum()) for row in x.astype(np.float64)]
    assert nearest(x, centres).tolist() == slow


def test_kmeans_explains_separated_clusters():
    rng = np.random.default_rng(3)
    means = rng.normal(size=(8, 5)) * 20
    x = (means[np.arange(160) % 8] + rng.normal(size=(160, 5))).astype(np.float32)
    centres = kmeans(x, 8, 25, np.random.default_rng(0))
    assert len(set(nearest(x, centres))) == 8
    assert ((x - centres[nearest(x, centres)]) ** 2).sum(1).mean() < 10  # 5 dimensions of unit noise


def test_more_codes_than_distinct_rows_is_no_error():
    centres = kmeans(np.zeros((3, 4), np.float32), 8, 5, np.random.default_rng(0))
    assert centres.shape == (8, 4)
    assert np.isfinite(centres).all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 80), k=st.integers(1, 6), slack=st.integers(0, 3), seed=st.integers(0, 10_000))
def test_no_code_holds_more_than_its_capacity(n, k, slack, seed):
    rng = np.random.default_rng(seed)
    x, centres = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(k, 3)).astype(np.float32)
    capacity = -(-n // k) + slack
    codes, overflow = assign_codes(x, centres, capacity)
    assert np.bincount(codes, minlength=k).max() <= capacity
    assert (overflow == (codes != nearest(x, centres))).all()


def test_a_contested_code_keeps_those_who_would_lose_most():
    centres = np.array([[0.0], [10.0]], np.float32)
    x = np.array([[0.0], [1.0], [4.0]], np.float32)  # all nearest to 0; the last loses least by leaving
    assert assign_codes(x, centres, 2)[0].tolist() == [0, 0, 1]


def test_too_many_items_for_the_codes_are_refused():
    with pytest.raises(UGTError, match="don't fit"):
        assign_codes(np.zeros((5, 2), np.float32), np.zeros((2, 2), np.float32), 2)


@pytest.mark.parametrize("method", ["residual_kmeans", "rq_vae"])
def test_codes_never_collide_are_dense_and_repeat_with_the_seed(method):
    x = clusters()

    def make():
        books = fit_residual_kmeans(x, 8, 8, 20, seed=3) if method == "residual_kmeans" else fit_rq_vae(x, 8, 8, 6, 30, seed=3)
        return quantise(x, localise(x, books, 16, 2.0, 3), 16, 2.0)

    codes, figures = make()
    assert len(np.unique(codes, axis=0)) == len(x)
    for group in np.unique(codes[:, :2], axis=0):
        l3 = sorted(codes[(codes[:, :2] == group).all(1), 2])
        assert l3 == list(range(len(l3)))
        assert len(l3) <= 16
    assert np.bincount(codes[:, 0]).max() <= 100  # twice the mean
    assert (make()[0] == codes).all()
    assert figures["explained_l2"] > figures["explained_l1"] > 0.4
    assert 0 <= figures["overflow"] < 0.5


def test_a_local_second_codebook_uses_more_groups_and_overflows_less():
    x = clusters(800)
    books = fit_residual_kmeans(x, 16, 8, 20, seed=0)
    (one, shared), (each, local) = quantise(x, books, 16, 2.0), quantise(x, localise(x, books, 16, 2.0, 5), 16, 2.0)
    assert local["overflow_l2"] < shared["overflow_l2"]
    assert local["explained_l2"] > shared["explained_l2"]
    assert len(np.unique(each[:, :2], axis=0)) > len(np.unique(one[:, :2], axis=0))
    assert local["overflow_l1"] == shared["overflow_l1"]


def test_rq_vae_uses_its_codes():
    x = clusters(600)
    books = fit_rq_vae((x - x.mean(0)) / x.std(0), 16, 8, 6, 30, seed=0)
    z = books.encode((x - x.mean(0)) / x.std(0))
    assert len(set(nearest(z, books.l1_KD))) >= 14


def test_the_key_orders_a_group_and_ties_go_to_the_lower_index():
    codes, _ = quantise(np.zeros((4, 2), np.float32), Codebooks(np.zeros((2, 2), np.float32), np.zeros((2, 2, 2), np.float32)), 8, 2.0, np.array([1, 5, 1, 9]))
    assert codes[:, 2].tolist() == [2, 1, 3, 0]


def test_codebooks_survive_saving(tmp_path):
    x = clusters(50)
    books = fit_rq_vae(x, 4, 4, 3, 2, seed=0)
    books.save(tmp_path / "b.npz")
    assert (Codebooks.load(tmp_path / "b.npz").encode(x) == books.encode(x)).all()
    assert np.isfinite(distances(books.encode(x), books.l1_KD)).all()
    with pytest.raises(UGTError, match="no codebooks"):
        Codebooks.load(tmp_path / "other.npz")
