"""Features of a catalogue, distributed: the same rows as the plain function."""

import numpy as np
import pytest

from data import features
from ugt.artifacts import CREDITS, ITEMS, read_table
from ugt.features import FeatureConfig, Vocabulary, encode_features, load_features, rows_of

pytestmark = pytest.mark.ray


def test_distributed_features_are_the_plain_ones_in_item_order(ray_session, catalogue, tmp_path):
    figures = features.run(catalogue, FeatureConfig(), tmp_path)
    rows = rows_of(read_table(catalogue / "items", ITEMS), read_table(catalogue / "credits", CREDITS)).to_pylist()
    x_NF = load_features(tmp_path)
    assert x_NF.dtype == np.float32
    assert (x_NF.toarray() == encode_features(rows, Vocabulary.load(tmp_path))).all()
    assert figures["items"] == 120
    assert figures["unknown_share"]["genres"] == round(1 / 120, 4)
