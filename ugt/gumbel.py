"""Gumbel noise of nucleus sampling: arrays made of one seed per request, so that the decode itself is a pure function.

Choices: a level draws from a generator of its own, row after row, so the noise of beam w is the same however many beams there are: a request gets the same
items alone and in a batch with wider ones.

Shapes: B requests, W beams, K1/K2 codes, C slots of the largest group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Noise(NamedTuple):
    """Standard Gumbel noise for the children of every prefix a nucleus decode keeps, float32."""

    noise_BK: NDArray[np.float32]
    noise_BWK: NDArray[np.float32]
    noise_BWC: NDArray[np.float32]


def gumbel_noise(seeds: Sequence[int], k1: int, k2: int, group_size: int, width: int) -> Noise:
    """Noise of B requests from their seeds (any integer from 0). Equal seeds give equal rows. O(B W (K2 + C))."""
    shapes = ((k1,), (width, k2), (width, group_size))
    levels = [[_gumbel(np.random.default_rng((seed, level)), shape) for seed in seeds] for level, shape in enumerate(shapes)]
    return Noise(*(np.stack(rows) for rows in levels))


def _gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return -np.log(np.maximum(rng.standard_exponential(shape, dtype=np.float32), np.finfo(np.float32).tiny))
