"""A small real version, untrained, served by the whole graph: what the tests of this folder talk to over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ugt.artifacts import HISTORIES, ITEMS, USERS, write_table
from ugt.schema import ACTION_IDS
from ugt.settings import Settings, load_settings

GENRES = ("Comedy", "Drama", "Horror", "War", "Western")
PORT = 8131
ITEM_COUNT, USER_COUNT = 400, 60
EMPTY_USERS = ("quiet-1", "quiet-2")  # with a profile, without events


@dataclass(frozen=True)
class Served:
    """A running server and the tables it was made from."""

    base_url: str
    root: Path
    settings: Settings
    version: str

    @property
    def etl_dir(self) -> Path:
        return self.root / "etl"

    @property
    def histories_dir(self) -> Path:
        return self.root / "histories"


def write_tables(root: Path, items: int = ITEM_COUNT, users: int = USER_COUNT) -> None:
    """Items of five genres (every fifth a series; one lone video), users with 3 to 40 events, two users with none."""
    rng, empty = np.random.default_rng(0), dict.fromkeys(ITEMS.names)
    rows = [
        empty
        | {"item_index": i, "item_id": f"tt{i:05d}", "item_type": "series" if i % 5 == 0 else "movie", "title": f"Film {i}", "countries": []}
        | {"genres": sorted(rng.choice(GENRES, 2, replace=False).tolist())}
        for i in range(items)
    ]
    rows[7] |= {"item_type": "video", "genres": []}
    write_table(pa.Table.from_pylist(rows, ITEMS), root / "etl/items")
    people = [{"user_id": f"user {u}", "gender": "FM"[u % 2], "age": 20 + u % 50, "occupation": None} for u in range(users)]
    people += [{"user_id": u, "gender": "F", "age": 25, "occupation": None} for u in EMPTY_USERS]
    write_table(pa.Table.from_pylist(people, USERS), root / "etl/users")
    histories = []
    for u in range(users):
        seen = rng.choice(items, int(rng.integers(3, 40)), replace=False).tolist()
        times = (1_700_000_000 + np.cumsum(rng.integers(60, 90_000, len(seen)))).tolist()
        histories.append(
            {"user_id": f"user {u}", "item_index": seen, "action": [ACTION_IDS["rate"]] * len(seen), "value": [4.0] * len(seen), "timestamp": times}
        )
    write_table(pa.Table.from_pylist(histories, HISTORIES), root / "histories/histories")


def write_version(root: Path) -> None:
    """Random semantic IDs, an untrained model over them, and its export: every part real, none of it wise.

    The beam alone orders (weight 1): untrained heads agree on nothing.
    """
    from train import export
    from ugt.model.config import DecodingConfig, ModelConfig
    from ugt.model.inputs import UserVocabulary
    from ugt.ranking import Fusion
    from ugt.scoring import Ranking, new_model, save_checkpoint
    from ugt.semantic_ids import SemanticIdConfig as Config
    from ugt.semantic_ids import SemanticIds, code_sizes

    rng, k1, k2, k3 = np.random.default_rng(1), *code_sizes(ITEM_COUNT, Config())
    codes = np.zeros((ITEM_COUNT, 3), np.int64)
    counts: dict[int, int] = {}
    for i, group in enumerate(rng.permutation(np.arange(ITEM_COUNT) % (k1 * k2)).tolist()):
        codes[i] = group // k2, group % k2, counts.get(group, 0)
        counts[group] = counts.get(group, 0) + 1
    SemanticIds.from_codes(codes, [f"tt{i:05d}" for i in range(ITEM_COUNT)], k1, k2, k3).save(root / "ids")
    np.save(root / "ids/item_vectors.npy", rng.standard_normal((ITEM_COUNT, 24)).astype(np.float32))
    model = new_model(ModelConfig(width=32, encoder_layers=1, decoder_layers=1, max_length=20), root / "ids", UserVocabulary(["F", "M"], []))
    save_checkpoint(model, root / "checkpoint", Ranking(Fusion(weight=1.0), Fusion(weight=1.0)), stage=3, figures={}, training={"seed": 0})
    export.run(root / "checkpoint", root / "ids", root / "etl", root / "histories", None, DecodingConfig(), root / "export", check_users=20)
    np.save(root / "fused.npy", rng.standard_normal((ITEM_COUNT, 16)).astype(np.float32))


def publish(root: Path, **flags: object) -> tuple[Settings, str]:
    """The export in a registry and its data in the embedded stores."""
    from data.feature_store import materialize
    from ugt.registry import Registry

    settings = load_settings(None, {"home": str(root / "home"), **flags})
    registry = Registry(settings.registry_location)
    version = registry.publish("ugt", root / "export", {})
    registry.promote("ugt", version)
    where = {"name": "ugt", "version": version, "version_dir": root / "export", "spaces": {"fused": root / "fused.npy"}}
    materialize(root / "histories", root / "etl", settings.stores, settings.home, **where)
    return settings, version


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Served]:
    """The graph, up for the tests of this folder. The generous budgets are for a loaded test machine: what is tested is not speed."""
    from serve import app

    root = tmp_path_factory.mktemp("served")
    write_tables(root)
    write_version(root)
    flags = {"serve.port": PORT, "serve.generation_budget_ms": 5000, "serve.fallback_budget_ms": 5000}
    settings, version = publish(root, **flags)
    try:
        yield Served(app.start(settings), root, settings, version)
    finally:
        app.stop(settings)
