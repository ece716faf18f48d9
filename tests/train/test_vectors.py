"""Features and texts to fused vectors, word2vec and semantic IDs: every step, on Ray where it uses it, and its resumption."""

import numpy as np
import pytest
from scipy import sparse

from train import autoencoder, semantic_ids, word2vec
from ugt.artifacts import CREDITS, ITEMS, read_table
from ugt.autoencoder import finish, fit, open_inputs
from ugt.feature_blocks import fit_vocabulary
from ugt.features import FeatureConfig, encode_features, load_features, rows_of, save_features
from ugt.fusion import AutoencoderConfig, Fusion, VectorSpace
from ugt.quantizer import Codebooks
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIdConfig, SemanticIds
from ugt.sequences import catalogue_tokens
from ugt.word2vec import Neighbourhood, Word2VecConfig

CONFIG = AutoencoderConfig(width=8, hidden=32, epochs=4, batch_size=32)
WORD2VEC = Word2VecConfig(width=16, min_words=50_000)


@pytest.fixture(scope="module")
def features_dir(catalogue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    items, credits = read_table(catalogue / "items", ITEMS), read_table(catalogue / "credits", CREDITS)
    vocabulary = fit_vocabulary(items, credits, FeatureConfig())
    save_features(sparse.csr_array(encode_features(rows_of(items, credits).to_pylist(), vocabulary)), folder)
    vocabulary.save(folder)
    return folder


@pytest.fixture(scope="module")
def fused_dir(features_dir, tmp_path_factory):
    """Trained in this process, in one go: the judge of the run on Ray."""
    folder, (inputs, blocks) = tmp_path_factory.mktemp("fusion"), open_inputs(features_dir, None)
    fit(inputs, blocks, CONFIG, folder / "state.pt", lambda _: None)
    fusion, fused_NW, _ = finish(inputs, blocks, CONFIG, folder / "state.pt")
    fusion.save(folder)
    np.save(folder / "fused.npy", fused_NW)
    return folder


@pytest.fixture(scope="module")
def corpus_dir(catalogue, write_corpus, tmp_path_factory):
    return write_corpus(catalogue, catalogue, WORD2VEC.families, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def word2vec_dir(catalogue, corpus_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("word2vec")
    word2vec.run(catalogue, catalogue, corpus_dir, WORD2VEC, folder)
    return folder


@pytest.mark.ray
def test_a_run_begun_before_a_kill_ends_on_ray_with_the_same_bytes(ray_session, fused_dir, features_dir, tmp_path):
    inputs, blocks = open_inputs(features_dir, None)

    def killed(figures):
        if figures["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(inputs, blocks, CONFIG, tmp_path / autoencoder.STATE, killed)
    (tmp_path / "out").mkdir()
    figures = autoencoder.run(features_dir, None, CONFIG, tmp_path / "out", tmp_path)
    for name in ("fused.npy", "autoencoder.safetensors", "autoencoder.json"):
        assert (tmp_path / "out" / name).read_bytes() == (fused_dir / name).read_bytes(), name
    assert [point["epoch"] for point in figures["curve"]] == [1, 2, 3, 4]


def test_word2vec_gives_the_same_files_again(catalogue, corpus_dir, word2vec_dir, tmp_path):
    figures = word2vec.run(catalogue, catalogue, corpus_dir, WORD2VEC, tmp_path)
    for path in sorted(word2vec_dir.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert not (tmp_path / "corpus.txt").exists()
    assert figures["items"] == 120
    assert np.load(tmp_path / "train_counts.npy")[:2].tolist() == [0, 0]


@pytest.mark.parametrize("method", ["residual_kmeans", "rq_vae"])
def test_every_item_gets_a_triple_of_its_own_and_the_same_one_again(catalogue, fused_dir, word2vec_dir, tmp_path, method):
    config = SemanticIdConfig(method=method, rq_vae_epochs=5)
    for name in "ab":
        (tmp_path / name).mkdir()
        health = semantic_ids.run(catalogue, fused_dir, word2vec_dir, config, tmp_path / name)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    ids = SemanticIds.load(tmp_path / "a")
    assert health["collisions"] == 0
    assert len(ids) == 120 == len({ids.code_of(i) for i in range(120)})
    counts = np.load(word2vec_dir / "train_counts.npy")
    for l1, l2 in {ids.code_of(i)[:2] for i in range(120)}:
        assert (np.diff(counts[ids.with_prefix(l1, l2)]) <= 0).all()  # L3 = 0 is the most seen of its group


def test_an_item_of_the_catalogue_encoded_online_lands_where_it_already_is(catalogue, features_dir, fused_dir, word2vec_dir, tmp_path):
    """The whole way of a new item: features, fused vector, co-occurrence vector, item vector, triple."""
    semantic_ids.run(catalogue, fused_dir, word2vec_dir, SemanticIdConfig(), tmp_path)
    ids, codebooks, vectors = SemanticIds.load(tmp_path), Codebooks.load(tmp_path / "codebooks.npz"), np.load(tmp_path / "item_vectors.npy")
    fused = Fusion.load(fused_dir).encode(load_features(features_dir)[:1], None)
    tokens = catalogue_tokens(read_table(catalogue / "items", ITEMS), read_table(catalogue / "credits", CREDITS))
    beside = [Neighbourhood.load(word2vec_dir / name).vector(tokens[0])[None] for name in ("neighbourhood.npz", "cooccurrence_neighbourhood.npz")]
    x_1D = VectorSpace.load(tmp_path / "vector_space.npz").join([fused, *beside])
    assert np.abs(x_1D - vectors[:1]).max() < 1e-3  # item 0 was never seen, so its vector is what a new item's would be; one row against a block of them
    grown = ids.insert(["new"], x_1D, codebooks)
    assert grown.item_of(*grown.code_of(120)) == 120


def test_vectors_of_another_catalogue_are_refused(catalogue, fused_dir, word2vec_dir, tmp_path):
    for name in ("fused.npy", "word2vec.npy"):
        np.save(tmp_path / name, np.zeros((7, 4), np.float32))
    with pytest.raises(UGTError, match="120 items"):
        semantic_ids.run(catalogue, tmp_path, word2vec_dir, SemanticIdConfig(), tmp_path)
