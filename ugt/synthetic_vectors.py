"""Item vectors with the shape of a real catalogue's: clusters inside themes, Zipf sizes, spread that differs by direction and by cluster.

Choices: white noise has no neighbours worth the name, and equal round clusters are what k-means was made for; real ones are neither. A cluster's size follows
Zipf's law (the largest tenth of the clusters holds most of the items), its items vary along the directions of its theme with a spectrum that falls as 1/j, its
spread is its own (log-normal), and a little of everything is noise. Rows are in random order: any slice of them is a fair sample.

Shapes: N items, W width, T themes, C clusters, R directions in which the items of a theme vary.
"""

from __future__ import annotations

import numpy as np

THEMES = 32
ITEMS_PER_CLUSTER = 64  # on average
ZIPF = 1.0  # size of a cluster falls as rank ** -ZIPF
THEME_SPREAD, CLUSTER_SPREAD, ITEM_SPREAD, NOISE = 1.0, 0.7, 0.7, 0.05  # standard deviation along the first direction; of the noise, along any
BLOCK = 65_536


def clustered_vectors(items: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, W], and the cluster of each item, int32 [N], larger clusters first. O(N W R / T) time beside the noise; equal seeds give equal arrays."""
    rng = np.random.default_rng(seed)
    clusters, directions = max(2 * THEMES, items // ITEMS_PER_CLUSTER), max(2, width // 4)
    fall_W, fall_R = (np.arange(1, n + 1) ** -0.5 for n in (width, directions))  # variance falls as 1/j
    theme_C = rng.integers(0, THEMES, clusters)
    axes_TRW = np.stack([np.linalg.qr(rng.standard_normal((width, directions)))[0].T for _ in range(THEMES)]) * fall_R[:, None]
    theme_TW = THEME_SPREAD * rng.standard_normal((THEMES, width)) * fall_W
    mean_CW = theme_TW[theme_C] + CLUSTER_SPREAD * rng.standard_normal((clusters, width)) * fall_W
    spread_C = ITEM_SPREAD * rng.lognormal(0, 0.4, clusters)
    size_C = np.arange(1, clusters + 1) ** -ZIPF
    cluster_N = rng.choice(clusters, items, p=size_C / size_C.sum()).astype(np.int32)
    x_NW = np.empty((items, width), np.float32)
    mean_CW, axes_TRW = mean_CW.astype(np.float32), axes_TRW.astype(np.float32)
    for start in range(0, items, BLOCK):
        block = cluster_N[start : start + BLOCK]
        x_BW = NOISE * rng.standard_normal((len(block), width), np.float32)
        x_BW += mean_CW[block]
        z_BR = rng.standard_normal((len(block), directions), np.float32) * spread_C[block, None].astype(np.float32)
        for theme in range(THEMES):
            rows = np.flatnonzero(theme_C[block] == theme)
            x_BW[rows] += z_BR[rows] @ axes_TRW[theme]
        x_NW[start : start + BLOCK] = x_BW
    return x_NW, cluster_N
