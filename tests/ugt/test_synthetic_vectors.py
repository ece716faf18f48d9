"""Generated item vectors: Zipf sizes, directions that differ, neighbours of one cluster, the same for the same seed."""

import numpy as np

from ugt.synthetic_vectors import ITEMS_PER_CLUSTER, clustered_vectors


def test_cluster_sizes_follow_zipf():
    _, cluster = clustered_vectors(40_000, 8, 0)
    sizes = np.bincount(cluster)
    assert len(sizes) == 40_000 // ITEMS_PER_CLUSTER
    assert sizes[0] / sizes[9] == np.clip(sizes[0] / sizes[9], 9, 11)  # rank 1 against rank 10; 3 standard deviations of the smaller are 9%
    assert np.sort(sizes)[::-1][: len(sizes) // 10].sum() > len(cluster) / 2


def test_spread_differs_by_direction_and_neighbours_share_a_cluster():
    x, cluster = clustered_vectors(3000, 32, 1)
    variance = np.linalg.eigvalsh(np.cov(x[cluster == 0].T))
    assert variance[-1] > 10 * np.median(variance)  # white noise: below 3
    distance = ((x[:200, None] - x[None]) ** 2).sum(-1)
    distance[np.arange(200), np.arange(200)] = np.inf
    same = (cluster[distance.argmin(1)] == cluster[:200]).mean()
    assert same > 3 * (np.bincount(cluster) / 3000 @ np.bincount(cluster) / 3000)  # three times chance


def test_equal_seeds_give_equal_vectors():
    (x, a), (y, b), (z, _) = clustered_vectors(500, 8, 2), clustered_vectors(500, 8, 2), clustered_vectors(500, 8, 3)
    assert (x == y).all()
    assert (a == b).all()
    assert not (x == z).all()
    assert x.dtype == np.float32
