"""The autoencoder: its numpy half is its torch half, it learns, and a killed training ends on the same curve."""

import numpy as np
import pytest
import torch

from ugt.autoencoder import Autoencoder, finish, fit
from ugt.fusion import AutoencoderConfig, Fusion, Inputs, Scaler, VectorSpace, bottleneck
from ugt.schema import UGTError

CONFIG = AutoencoderConfig(width=6, hidden=32, epochs=8, batch_size=32)
BLOCKS = {"genres": (0, 8), "people": (8, 20), "numbers": (20, 24), "text": (24, 40)}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 4))
    features = np.concatenate([(z @ rng.normal(size=(4, 20)) > 1), z @ rng.normal(size=(4, 4))], axis=1).astype(np.float32)
    features[:, 3] = 1  # a column that never varies
    return Inputs(features, (z @ rng.normal(size=(4, 16)) * 0.05 + 0.1).astype(np.float32))


def test_numpy_and_torch_encode_alike():
    model, x = Autoencoder(40, CONFIG), np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32)
    assert np.abs(bottleneck(x, model.layers()) - model.encode(torch.from_numpy(x)).detach().numpy()).max() < 1e-5  # float32, other order of sums


def test_blocks_are_scaled_to_the_same_variance_and_constants_are_dropped(inputs):
    scaler = Scaler.fit(inputs, BLOCKS)
    x = scaler(inputs.rows(slice(None)))
    assert (x[:, 3] == 0).all()
    for start, end in BLOCKS.values():
        live = x[:, start:end].var(0) > 0
        assert x[:, start:end].var(0)[live].mean() == pytest.approx(1, abs=1e-3)


def test_it_learns_and_its_vectors_are_standardised(inputs, tmp_path):
    losses = []
    config = CONFIG.model_copy(update={"epochs": 60})
    fit(inputs, BLOCKS, config, tmp_path / "s.pt", lambda figures: losses.append(figures["loss"]))
    fusion, fused, figures = finish(inputs, BLOCKS, config, tmp_path / "s.pt")
    assert len(losses) == 60
    assert losses[-1] < 0.75 * losses[0]
    assert figures["explained"]["text"] > 0.5
    assert np.allclose(fused.mean(0), 0, atol=1e-3)
    assert np.allclose(fused.std(0), 1, atol=1e-3)
    fusion.save(tmp_path)
    again = Fusion.load(tmp_path)
    assert (again.encode(inputs.features_NF, inputs.text_NT) == fused).all()
    assert np.abs(again.encode(inputs.features_NF[5:6], inputs.text_NT[5:6]) - fused[5:6]).max() < 1e-4
    with pytest.raises(UGTError, match="trained on"):
        again.encode(inputs.features_NF, None)


def test_a_killed_training_ends_on_the_same_curve(inputs, tmp_path):
    whole, parts = [], []
    fit(inputs, BLOCKS, CONFIG, tmp_path / "whole.pt", lambda figures: whole.append(figures["loss"]))

    def until_killed(figures):
        parts.append(figures["loss"])
        if figures["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(inputs, BLOCKS, CONFIG, tmp_path / "killed.pt", until_killed)
    fit(inputs, BLOCKS, CONFIG, tmp_path / "killed.pt", lambda figures: parts.append(figures["loss"]))
    assert parts == whole
    assert (finish(inputs, BLOCKS, CONFIG, tmp_path / "whole.pt")[1] == finish(inputs, BLOCKS, CONFIG, tmp_path / "killed.pt")[1]).all()


def test_an_item_without_text_columns_trains_too(inputs, tmp_path):
    blocks = {name: span for name, span in BLOCKS.items() if name != "text"}
    fit(Inputs(inputs.features_NF, None), blocks, CONFIG, tmp_path / "s.pt", lambda _: None)
    fusion, fused, _ = finish(Inputs(inputs.features_NF, None), blocks, CONFIG, tmp_path / "s.pt")
    assert not fusion.uses_text
    assert np.isfinite(fused).all()


def test_joined_vectors_give_each_block_its_share_of_the_variance(tmp_path):
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(500, 10)).astype(np.float32) * 7 + 3, rng.normal(size=(500, 30)).astype(np.float32) * 0.01]
    blocks[0][:, 0] = 5
    space = VectorSpace.fit(blocks, [1.0, 3.0])
    x = space.join(blocks)
    assert x.shape == (500, 40)
    assert (x[:, :10] ** 2).sum() / (x**2).sum() == pytest.approx(0.25, abs=0.01)
    assert x.var(0).sum() == pytest.approx(4, abs=0.01)
    space.save(tmp_path / "space.npz")
    assert (VectorSpace.load(tmp_path / "space.npz").join([block[3:4] for block in blocks]) == x[3:4]).all()
    assert VectorSpace.fit(blocks, [0, 1]).join(blocks).shape == (500, 30)
    with pytest.raises(UGTError, match="every weight"):
        VectorSpace.fit(blocks, [0, 0])
