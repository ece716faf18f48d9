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


def test_only_texts_that_are_new_are_encoded(ray_session, catalogue, tmp_path):
    config, cache = TextConfig(block_rows=50), tmp_path / "cache"
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    assert text.run(catalogue, config, tmp_path / "first", cache)["cached"] == 0
    again = text.run(catalogue, config, tmp_path / "second", cache)
    assert (again["cached"], again["workers"]) == (120, 0)
    assert (np.load(tmp_path / "first/text.npy") == np.load(tmp_path / "second/text.npy")).all()
    assert text.run(catalogue, TextConfig(block_rows=50, max_tokens=8), tmp_path / "third", cache)["cached"] == 0  # cut elsewhere: other vectors


def test_a_cache_knows_its_texts_and_no_others(tmp_path):
    cache = text.VectorCache(tmp_path, TextConfig())
    keys = [bytes([i]) * 16 for i in range(5)]
    x_NT = np.random.default_rng(0).normal(size=(5, 384)).astype(np.float32)
    cache.add([keys[0], keys[2], keys[0]], x_NT[[0, 2, 0]])
    cache.add([keys[4]], x_NT[[4]])
    found_NT = np.zeros((5, 384), np.float32)
    assert cache.fill(keys, found_NT).tolist() == [True, False, True, False, True]
    assert (found_NT == np.where([[1], [0], [1], [0], [1]], x_NT, 0)).all()
