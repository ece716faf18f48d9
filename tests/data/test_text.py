"""Text vectors of a catalogue, distributed: the same as one encoder gives."""

import numpy as np
import pytest

from data import text
from ugt.artifacts import CREDITS, ITEMS, PEOPLE, read_table
from ugt.text import Encoder, TextConfig, item_texts

pytestmark = pytest.mark.ray


def test_distributed_vectors_are_those_of_one_encoder_in_item_order(ray_session, catalogue, tmp_path):
    config = TextConfig(block_rows=50)
    figures = text.run(catalogue, config, tmp_path)
    texts = item_texts(read_table(catalogue / "items", ITEMS), read_table(catalogue / "people", PEOPLE), read_table(catalogue / "credits", CREDITS), config)
    x_NT = np.load(tmp_path / "text.npy")
    # other batches, other padding: the last bits move
    assert np.abs(x_NT - Encoder(config).encode(texts)).max() < 1e-5
    assert figures["workers"] == 2
