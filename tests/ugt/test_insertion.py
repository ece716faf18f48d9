"""New items enter a trained model: the same rows by two ways, old rows untouched, and the exported graph answers with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ugt.test_runtime import ITEMS, K, make_model, write_version
from train.graph import table_arrays
from ugt.insertion import Embedder, Near, Neighbours, extend, grow
from ugt.model.ugt import UGT
from ugt.quantizer import Codebooks
from ugt.runtime import STRATEGIES, GenerationRequest, Generator
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIds

NEW = 6


def codebooks(model: UGT) -> Codebooks:
    """Centres at the mean vectors of the codes, in place of those the codes would have come from."""
    vector_NV, codes_N3 = model.items.vector_NV.numpy(), model.semantic_ids.codes_N3
    l1_KV = np.stack([vector_NV[codes_N3[:, 0] == k].mean(0) for k in range(K)])
    l2_KV = np.stack([vector_NV[codes_N3[:, 1] == k].mean(0) if (codes_N3[:, 1] == k).any() else np.full(4, 9.0) for k in range(K)])
    return Codebooks(l1_KV.astype(np.float32), np.repeat(l2_KV[None].astype(np.float32), K, 0))


@pytest.fixture(scope="module")
def model() -> UGT:
    return make_model()


@pytest.fixture(scope="module")
def generator(model: UGT, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(write_version(model, tmp_path_factory.mktemp("insertion") / "v1"))


def inserted(model: UGT, seed: int = 1) -> tuple[SemanticIds, np.ndarray, Near]:
    """NEW more items, each close to one of the catalogue."""
    vector_NV, rng = model.items.vector_NV.numpy(), np.random.default_rng(seed)
    vector_MV = (vector_NV[rng.permutation(ITEMS)[:NEW]] + rng.normal(0, 0.05, (NEW, 4))).astype(np.float32)
    near = Neighbours.fit(vector_NV, np.ones(ITEMS)).of(vector_MV, count=5)
    return model.semantic_ids.insert([f"new{i}" for i in range(NEW)], vector_MV, codebooks(model)), vector_MV, near


def extended(model: UGT) -> tuple[dict[str, np.ndarray], SemanticIds]:
    grown, vector_MV, near = inserted(model)
    return extend(table_arrays(model), grown, Embedder.of(model.items).rows(grown.codes_N3[ITEMS:], vector_MV, near)), grown


def test_extended_tables_are_those_of_a_model_made_anew_with_the_items(model: UGT) -> None:
    """The fast path adds to sums; the slow one computes every row and mean again from the weights."""
    grown, vector_MV, near = inserted(model)
    fast = extended(model)[0]
    slow = table_arrays(grow(model, grown, vector_MV, near))
    assert fast.keys() == slow.keys()
    for name, array in slow.items():
        assert fast[name].dtype == array.dtype
        assert np.allclose(fast[name], array, atol=1e-6), name  # sums of floats in another order


def test_insertion_moves_no_item_and_changes_only_the_prefixes_it_joins(model: UGT) -> None:
    before, (after, grown) = table_arrays(model), extended(model)
    assert (after["item_ID"][: ITEMS + 1] == before["item_ID"]).all()
    assert (after["item_slot_N"][:ITEMS] == before["item_slot_N"]).all()
    joined = np.unique(grown.codes_N3[ITEMS:, 0].astype(int) * K + grown.codes_N3[ITEMS:, 1])
    untouched = np.setdiff1d(np.arange(K * K), joined)
    assert (after["group_GD"][untouched] == before["group_GD"][untouched]).all()
    assert not np.allclose(after["group_GD"][joined], before["group_GD"][joined])


def test_tables_may_be_extended_twice(model: UGT) -> None:
    """One by one gives what all at once gives."""
    grown, vector_MV, near = inserted(model)
    embedder, ids, tables = Embedder.of(model.items), model.semantic_ids, table_arrays(model)
    for i in range(NEW):
        ids = ids.insert([f"new{i}"], vector_MV[i : i + 1], codebooks(model))
        one = Near(near.item_MB[i : i + 1], near.weight_MB[i : i + 1])
        tables = extend(tables, ids, embedder.rows(ids.codes_N3[-1:], vector_MV[i : i + 1], one))
    for name, array in extended(model)[0].items():
        assert np.allclose(tables[name], array, atol=1e-6), name
    assert (ids.codes_N3 == grown.codes_N3).all()


def test_embedder_is_read_back_as_it_was_written(model: UGT, tmp_path: Path) -> None:
    grown, vector_MV, near = inserted(model)
    embedder = Embedder.of(model.items)
    embedder.save(tmp_path / "insertion.npz")
    codes = grown.codes_N3[ITEMS:]
    assert (Embedder.load(tmp_path / "insertion.npz").rows(codes, vector_MV, near) == embedder.rows(codes, vector_MV, near)).all()
    with pytest.raises(UGTError, match="can't take new items"):
        Embedder.load(tmp_path / "none.npz")


def test_a_new_item_does_not_need_a_new_graph(model: UGT, generator: Generator) -> None:
    """The exported graph returns inserted items by every strategy when nothing else is allowed, in histories too, and still none that does not exist."""
    tables, grown = extended(model)
    larger = generator.with_catalogue(tables)
    new = np.arange(ITEMS, ITEMS + NEW)
    only_new = np.isin(np.arange(ITEMS + NEW), new)
    for strategy in STRATEGIES:
        request = GenerationRequest([3, ITEMS + 1], [10, 10], [4.0, 4.0], [10**9, 10**9 + 5], 1_700_000_000, allowed=only_new, beam_width=20, strategy=strategy)
        result = larger.recommend([request])[0]
        assert sorted(result.item_indices.tolist()) == new.tolist()
        assert [tuple(c) for c in result.codes.tolist()] == [grown.code_of(i) for i in result.item_indices]
        everything = larger.recommend([GenerationRequest([3], [10], [4.0], [10**9], 1_700_000_000, beam_width=ITEMS + NEW + 9, strategy=strategy)])[0]
        assert sorted(everything.item_indices.tolist()) == list(range(ITEMS + NEW)) or strategy == "nucleus"
        assert set(everything.item_indices.tolist()) <= set(range(ITEMS + NEW))


def test_the_graph_and_pytorch_agree_on_a_grown_catalogue(model: UGT, generator: Generator) -> None:
    from ugt.model.config import DecodingConfig
    from ugt.model.inputs import History
    from ugt.scoring import decode

    grown, vector_MV, near = inserted(model)
    larger = generator.with_catalogue(extended(model)[0])
    torch_model, history = grow(model, grown, vector_MV, near), ([5, ITEMS, 7], [10] * 3, [4.0] * 3, [10**9 + i for i in range(3)])
    beams = decode(torch_model, [History(*history)], [1_700_000_000], np.zeros((1, 3), np.int64), [np.empty(0, np.int64)], DecodingConfig(beam_width=30))
    result = larger.recommend([GenerationRequest(*history, 1_700_000_000, beam_width=30)])[0]
    assert result.item_indices.tolist() == beams.item_BW[0].tolist()
    assert np.abs(result.log_probs - beams.log_prob_BW[0].numpy()).max() < 1e-4  # as between the graph and PyTorch before


def test_tables_of_another_version_are_refused(model: UGT, generator: Generator) -> None:
    tables = extended(model)[0]
    with pytest.raises(UGTError, match="not of this model version"):
        generator.with_catalogue(tables | {"item_ID": tables["item_ID"][:, :8]})
    with pytest.raises(UGTError, match="rows were given"):
        extend(table_arrays(model), model.semantic_ids, tables["item_ID"][-2:])


def test_neighbours_are_the_nearest_by_cosine_and_never_the_item_itself() -> None:
    x_NC = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    near = Neighbours.fit(x_NC, np.full(300, 50)).of(x_NC, without=np.arange(300), count=7)
    y_NC = x_NC - x_NC.mean(0)
    y_NC /= np.linalg.norm(y_NC, axis=1, keepdims=True)
    cosine_NN = y_NC @ y_NC.T - 9 * np.eye(300)
    assert (near.item_MB == np.argsort(-cosine_NN, axis=1)[:, :7]).all()
    assert np.allclose(near.weight_MB.sum(1), 1, atol=1e-6)


def test_a_step_sees_a_share_of_the_items_as_new_ones_in_training_only() -> None:
    """Their rows have no free embedding and the estimated vector; validation and serving see every item as it is."""
    base = make_model()
    config = base.config.model_copy(update={"cold_share": 0.5})
    estimated_NV = base.items.vector_NV.numpy() + 1
    model = UGT(config, base.semantic_ids, base.items.vector_NV.numpy(), base.vocabulary, estimated_NV)
    model.load_state_dict(base.state_dict())
    warm_ID, items = base.eval().tables().item_ID[1:], model.items
    cold_ID = warm_ID - items.free.weight + items.project(torch.ones(1, 4))
    mixed_ID = model.train().tables().item_ID[1:]
    is_cold, is_warm = torch.isclose(mixed_ID, cold_ID, atol=1e-5).all(1), torch.isclose(mixed_ID, warm_ID, atol=1e-5).all(1)
    assert (is_cold | is_warm).all()
    assert 10 < is_cold.sum() < 70
    assert torch.allclose(model.eval().tables().item_ID[1:], warm_ID)
