"""The fit of the codebooks as a Ray Train run: two workers give what one gives."""

from __future__ import annotations

import numpy as np
import pytest

from train.semantic_ids import fit, fit_distributed
from ugt.quantizer import quantise
from ugt.semantic_ids import SemanticIdConfig
from ugt.synthetic_vectors import clustered_vectors

SIZES = (16, 16, 16)


@pytest.mark.ray
@pytest.mark.parametrize("method", ["residual_kmeans", "rq_vae"])
def test_two_workers_give_the_codebooks_of_one(ray_session, tmp_path, method):
    # one epoch: rounding decides a few of the learned method's choices, and later epochs build on them
    config = SemanticIdConfig(method=method, rq_vae_epochs=1, rq_vae_width=6, iterations=10, workers=2)
    x, _ = clustered_vectors(800, 12, 0)
    two, one = fit_distributed(x, SIZES, config, tmp_path / "fit"), fit(x, SIZES, config)
    assert np.allclose(two.l1_KD, one.l1_KD, atol=1e-4)  # sums of floats in another order
    same = (quantise(x, two, 16, 2.0)[0][:, :2] == quantise(x, one, 16, 2.0)[0][:, :2]).all(1)
    assert same.mean() > 0.98
    assert not (tmp_path / "fit").exists()
