"""The table item <-> triple: a bijection, a faithful trie, prefixes and insertion."""

import numpy as np
import pytest

from ugt.quantizer import Codebooks
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIdConfig, SemanticIds, Trie, code_sizes

K1, K2, K3 = 4, 4, 8


def make(n: int = 60, seed: int = 0, spare: int = 2) -> SemanticIds:
    rng = np.random.default_rng(seed)
    count: dict[tuple[int, int], int] = {}
    codes = []
    while len(codes) < n:
        pair = (int(rng.integers(K1)), int(rng.integers(K2 - 1)))  # L2 = 3 is never used: impossible prefixes exist
        if count.get(pair, 0) < K3:
            codes.append((*pair, count.get(pair, 0)))
            count[pair] = count.get(pair, 0) + 1
    return SemanticIds.from_codes(np.array(codes), [f"tt{i:04d}" for i in range(n)], K1, K2, K3, spare)


def test_every_triple_that_is_an_item_is_found_and_no_other():
    ids = make()
    table = {tuple(c): i for i, c in enumerate(ids.codes_N3.tolist())}
    for l1 in range(-1, K1 + 1):
        for l2 in range(-1, K2 + 1):
            for l3 in range(-1, K3 + 1):
                assert ids.item_of(l1, l2, l3) == table.get((l1, l2, l3))
    assert all(ids.item_of(*ids.code_of(i)) == i for i in range(len(ids)))


def test_the_flat_arrays_agree_with_each_other():
    trie = make().trie
    assert trie.slot_item_S[-1] == -1
    assert (trie.slot_item_S[trie.item_slot_N] == np.arange(len(trie.item_slot_N))).all()
    for group in range(trie.groups):
        slots = trie.slot_item_S[trie.group_start_G[group] : trie.group_start_G[group] + trie.reserve_G[group]]
        live = int(trie.group_count_G[group])
        assert (slots[:live] >= 0).all()
        assert (slots[live:] == -1).all()
    assert trie.reserve_G.sum() + 1 == trie.slots
    again = Trie.from_arrays(trie.arrays())
    assert all((again.arrays()[name] == array).all() for name, array in trie.arrays().items())


def test_a_prefix_lists_exactly_its_items():
    ids = make()
    for l1 in range(K1):
        assert set(ids.with_prefix(l1)) == {i for i, c in enumerate(ids.codes_N3) if c[0] == l1}
        for l2 in range(K2):
            assert set(ids.with_prefix(l1, l2)) == {i for i, c in enumerate(ids.codes_N3) if (c[0], c[1]) == (l1, l2)}
    assert len(ids.with_prefix(K1)) == 0
    assert len(ids.with_prefix(0, 99)) == 0


def test_save_and_load_give_the_same_table_and_the_same_bytes(tmp_path):
    ids = make()
    ids.save(tmp_path / "a")
    SemanticIds.load(tmp_path / "a").save(tmp_path / "b")
    loaded = SemanticIds.load(tmp_path / "b")
    assert (tmp_path / "a/semantic_ids.parquet").read_bytes() == (tmp_path / "b/semantic_ids.parquet").read_bytes()
    assert (loaded.codes_N3 == ids.codes_N3).all()
    assert loaded.item_ids == ids.item_ids
    assert (loaded.trie.slot_item_S == ids.trie.slot_item_S).all()
    with pytest.raises(UGTError, match="no semantic_ids"):
        SemanticIds.load(tmp_path)


@pytest.mark.parametrize("codes", [[(0, 0, 0), (0, 0, 0)], [(0, 0, 1)], [(0, K2, 0)], [(-1, 0, 0)]])
def test_codes_that_collide_have_holes_or_leave_the_range_are_refused(codes):
    with pytest.raises(UGTError):
        SemanticIds.from_codes(np.array(codes), [str(i) for i in range(len(codes))], K1, K2, K3)


def books(rng: np.random.Generator) -> Codebooks:
    return Codebooks(l1_KD=rng.normal(size=(K1, 5)).astype(np.float32) * 3, l2_KKD=rng.normal(size=(K1, K2, 5)).astype(np.float32))


def test_a_new_item_enters_a_live_group_and_nobody_moves():
    rng, ids = np.random.default_rng(1), make()
    codebooks = books(rng)
    vectors = rng.normal(size=(10, 5)).astype(np.float32)
    grown = ids.insert([f"new{i}" for i in range(10)], vectors, codebooks)
    assert len(ids) == 60  # the old table is untouched
    assert (grown.codes_N3[:60] == ids.codes_N3).all()
    assert len({tuple(c) for c in grown.codes_N3.tolist()}) == 70
    for i in range(60, 70):
        l1, l2, l3 = grown.code_of(i)
        assert grown.item_of(l1, l2, l3) == i
        assert ids.trie.group_count_G[l1 * K2 + l2] > 0
    # slow judge for the first one: the nearest live group with a free slot
    room = [(a, b) for a in range(K1) for b in range(K2) if 0 < ids.trie.group_count_G[a * K2 + b] < ids.trie.reserve_G[a * K2 + b]]
    best = min((float(((vectors[0] - codebooks.l1_KD[a] - codebooks.l2_KKD[a, b]) ** 2).sum()), a, b) for a, b in room)
    assert grown.code_of(60)[:2] == best[1:]
    # the grown table is a table: built from its own codes it is the same, but for where the spare slots lie
    again = SemanticIds.from_codes(grown.codes_N3, grown.item_ids, K1, K2, K3)
    assert (again.trie.group_count_G == grown.trie.group_count_G).all()


def test_insertion_refuses_a_known_item_and_says_when_it_is_full():
    rng, ids = np.random.default_rng(1), make(spare=0)
    with pytest.raises(UGTError, match="already there"):
        ids.insert(["tt0001"], np.zeros((1, 5)), books(rng))
    with pytest.raises(UGTError, match="no free slot"):
        ids.insert(["new"], np.zeros((1, 5)), books(rng))


def test_health_counts_use_and_collisions():
    health = make().health()
    assert health["collisions"] == 0
    assert health["l2_dead"] == 1
    assert health["groups_used"] <= 12
    assert 1 < health["l1_perplexity"] <= K1


def test_code_sizes_follow_from_the_number_of_items():
    config = SemanticIdConfig()
    assert code_sizes(4000, config) == (32, 32, 16)
    assert code_sizes(12_101, config) == (64, 64, 16)
    assert code_sizes(1_000_000, config) == (2048, 128, 16)  # a beam reads every L2 under each L1 it kept: that level stays narrow
    assert code_sizes(8_000_000, config) == (4096, 512, 16)
    assert code_sizes(1, config) == (4, 4, 8)
    for items in (500, 4000, 11_496, 12_101, 18_357, 60_000):
        k1, k2, _ = code_sizes(items, config)
        assert k1 == k2, items
    for items in (500, 12_101, 60_000, 100_000, 131_072, 200_000, 1_000_000, 34_000_000):
        k1, k2, _ = code_sizes(items, config)
        assert 2 <= items / (k1 * k2) <= 8, items  # a group holds about four
    for one in ({"l1": 512}, {"l2": 512}):  # the other follows
        k1, k2, _ = code_sizes(1_000_000, SemanticIdConfig(**one))
        assert (k1, k2) == (512, 512)
    with pytest.raises(UGTError, match="can't name"):
        code_sizes(1000, SemanticIdConfig(l1=4, l2=4, l3=4))
