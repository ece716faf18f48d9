"""What a Generator replica is told reaches the decode: strategy, seed, and the prior on level one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from serve.generator import Generation, Generator
from ugt.model.config import DecodingConfig
from ugt.runtime import Generator as Runtime

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def replica(served):
    """The deployment's own object, without the deployment around it."""
    made = object.__new__(Generator.func_or_class)
    made._runtime, made._decoding = Runtime(served.root / "export"), DecodingConfig(strategy="diverse_beam", beam_width=20)
    made._catalogue = SimpleNamespace(allowed=lambda key: None)
    ignored = SimpleNamespace(observe=lambda value: None)
    made._metrics = SimpleNamespace(batch_size=ignored, latency=ignored)
    return made


def ask(**more):
    return Generation("v", [3, 9], [1, 1], [4.0, 4.0], [0, 0], 0, {}, [3, 9], ((), ()), **more)


def test_a_prior_on_level_one_decides_the_first_code_under_every_strategy(replica):
    prior = np.full(replica._runtime.k1, -25.0, np.float32)
    prior[2] = 25.0
    for decoded in replica._decode([ask(strategy=s, prior=prior) for s in ("beam", "diverse_beam", "nucleus")]):
        group = replica._runtime.tables["item_group_N"][decoded.items]
        assert (group[:5] // replica._runtime.k2 == 2).all()


def test_a_request_without_a_strategy_is_decoded_as_the_version_says_and_a_seed_repeats_a_sample(replica):
    own, named, one, again, other = replica._decode([ask(), ask(strategy="diverse_beam")] + [replace(ask(strategy="nucleus"), seed=seed) for seed in (1, 1, 2)])
    assert own.strategy == "diverse_beam"
    assert own.items.tolist() == named.items.tolist()
    assert len(own.items) == 20
    assert one.items.tolist() == again.items.tolist() != other.items.tolist()
