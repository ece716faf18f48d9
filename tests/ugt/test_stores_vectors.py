"""Vectors in a real Milvus Lite server: what is written is what a replica reads."""

import numpy as np
import pytest

from ugt.schema import UGTError
from ugt.stores import embedded
from ugt.stores.vectors import VectorStore, dense_space


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("milvus")
    yield VectorStore(embedded.ensure_milvus(home))
    embedded.stop(home)


def test_a_snapshot_is_bit_for_bit_what_was_written_in_order(store):
    x = np.random.default_rng(0).standard_normal((2503, 8)).astype(np.float32)
    ids = [f"tt{i:04d}" for i in range(len(x))]
    store.replace("fused", ids, x)
    read_ids, read = store.read("fused")
    assert read_ids == ids
    assert (read == x).all()
    assert store.count("fused") == len(x)


def test_a_space_is_replaced_whole(store):
    store.replace("word2vec", ["a", "b", "c"], np.ones((3, 4), np.float32))
    store.replace("word2vec", ["a", "b"], np.zeros((2, 6), np.float32))
    ids, x = store.read("word2vec")
    assert ids == ["a", "b"]
    assert x.shape == (2, 6)
    store.drop("word2vec")
    assert "word2vec" not in store.spaces()
    assert store.count("word2vec") == 0


def test_a_search_under_a_prefix_is_the_search_among_its_items(store):
    rng = np.random.default_rng(1)
    x, codes = rng.standard_normal((300, 8)).astype(np.float32), np.stack([rng.integers(0, k, 300) for k in (4, 3, 50)], axis=1)
    ids = [f"t{i}" for i in range(300)]
    store.replace("fused", ids, x, codes)
    for prefix in ((), (2,), (2, 1)):
        under = np.flatnonzero((codes[:, : len(prefix)] == prefix).all(1))
        slow = under[np.argsort(-(x[under] @ x[7]))][:5]
        found = store.search("fused", "t7", 5, prefix)
        assert [item for item, _ in found] == [ids[i] for i in slow]
        assert [score for _, score in found] == pytest.approx((x[slow] @ x[7]).tolist(), rel=1e-5)  # float32 sums in another order
    assert store.search("fused", x[7], 3, (99,)) == []
    assert store.read("fused")[0] == ids
    with pytest.raises(UGTError, match="no item 'nobody'"):
        store.search("fused", "nobody", 5)


def test_a_missing_space_says_how_to_load_it(store):
    with pytest.raises(UGTError, match="ugt data materialize"):
        store.read(dense_space("v0009-ffffffff"))


def test_bad_vectors_are_refused_before_anything_is_dropped(store):
    store.replace("fused", ["a"], np.ones((1, 2), np.float32))
    with pytest.raises(UGTError, match="finite"):
        store.replace("fused", ["a"], np.full((1, 2), np.nan, np.float32))
    with pytest.raises(UGTError, match="2 items"):
        store.replace("fused", ["a", "b"], np.ones((1, 2), np.float32))
    assert store.count("fused") == 1


def test_an_address_where_nobody_listens_is_named():
    with pytest.raises(UGTError, match=r"127\.0\.0\.1:9"):
        VectorStore("http://127.0.0.1:9", timeout_s=1)
