"""A model version and the serving graph: publish, load the stores it needs, bring the graph up and down."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.feature_store import materialize
from serve import app
from ugt.artifacts import Artifact, ArtifactStore, read_table
from ugt.registry import PRODUCTION, Registry
from ugt.schema import UGTError
from ugt.settings import Settings
from ugt.stores import embedded
from ugt.stores.features import OnlineFeatures
from ugt.stores.records import Records
from ugt.stores.vectors import VectorStore

# a vector space of /similar, by the step and the file that hold its vectors
SPACES = {"fused": ("fusion", "fused.npy"), "word2vec": ("word2vec", "word2vec.npy")}


@dataclass(frozen=True)
class Version:
    """A version in the registry and the folders of the steps it was made from."""

    name: str
    number: str
    folder: Path
    steps: Mapping[str, Path]


def publish(settings: Settings, artifacts: Mapping[str, Artifact]) -> tuple[str, bool]:
    """Put an exported model into the registry and into production; returns the version and whether it was there already."""
    registry, name = Registry(settings.registry_location), settings.serve.model_name
    before = registry.versions(name)
    card = {"inputs": {step: artifact.key for step, artifact in artifacts.items()}, "figures": dict(artifacts["export"].manifest.figures)}
    version = registry.publish(name, artifacts["export"].path, card)
    registry.promote(name, version)
    return version, version in before


def find(settings: Settings, version: str = PRODUCTION) -> Version:
    """A published version with the artifacts named in its lineage. Raises UGTError if there is none, or if its artifacts are gone."""
    registry, name = Registry(settings.registry_location), settings.serve.model_name
    if version == PRODUCTION and registry.production(name) is None:
        raise UGTError(f"no version of '{name}' is in production in {settings.registry_location}. Make one: ugt demo")
    manifest = registry.manifest(name, version)
    store = ArtifactStore(settings.home)
    steps = {}
    for step, key in manifest.card.get("inputs", {}).items():
        artifact = store.find(step, key)
        if artifact is None:
            raise UGTError(f"version {manifest.version} was made from {step}/{key}, which is not in {store.home}/artifacts. Make it again: ugt demo")
        steps[step] = artifact.path
    return Version(name=name, number=manifest.version, folder=registry.resolve(name, manifest.version), steps=steps)


def load_stores(settings: Settings, version: Version) -> dict[str, Any]:
    """Histories and popularity to Redis, vectors to Milvus, items and users to SQL; quick if they are there already."""
    # a version made without a kind of vector (semantic_ids.fused_weight 0, say) has no such space, and /similar says so
    spaces = {space: version.steps[step] / file for space, (step, file) in SPACES.items() if step in version.steps}
    return materialize(
        version.steps["histories"],
        version.steps["etl"],
        settings.stores,
        settings.home,
        name=version.name,
        version=version.number,
        version_dir=version.folder,
        spaces=spaces,
    )


def under_prefix(settings: Settings, prefix: tuple[int, ...], like: str | None, space: str, limit: int) -> list[tuple[str, str]]:
    """Items of the stores under (L1) or (L1, L2): with their semantic ID, in its order; or with their score, the most like an item of a space first.

    Raises UGTError if there is no such space or item in it.
    """
    resolved = embedded.resolve(settings.stores, settings.home)
    if like is not None:
        vectors = VectorStore(resolved.milvus_uri)
        try:
            return [(item_id, f"{score:.4f}") for item_id, score in vectors.search(space, like, limit, prefix)]
        finally:
            vectors.close()
    records = Records(resolved.sql_url)
    try:
        l1, l2 = prefix[0], prefix[1] if len(prefix) > 1 else None
        return [(item_id, " ".join(str(code) for code in codes)) for item_id, codes in records.items_by_prefix(l1, l2, limit)]
    finally:
        records.close()


def shown_before(settings: Settings, version: Version) -> dict[str, set[str]]:
    """What each user was shown within the exposure window, or gave feedback on, in earlier runs: read from the store, not from the server that is judged."""
    user_ids = read_table(version.steps["histories"] / "histories").column("user_id").to_pylist()
    return asyncio.run(_shown_or_fed_back(embedded.resolve(settings.stores, settings.home).redis_url, settings.serve.exposure_hours, user_ids))


async def _shown_or_fed_back(redis_url: str, exposure_hours: float, user_ids: list[str]) -> dict[str, set[str]]:
    features = OnlineFeatures(redis_url, exposure_hours)
    try:
        known = {user_id: (await features.user_state(user_id, time.time(), 1)).exposed for user_id in user_ids}
        # from the stream of accepted events, not from what was materialised of it: the materialised state is part of what is judged
        async for event in features.events():
            if event.user_id in known:
                known[event.user_id].add(event.item_id)
    finally:
        await features.close()
    return known


@contextmanager
def served(settings: Settings, version: Version) -> Iterator[str]:
    """The graph, up for the length of the block; yields its base URL. Stores that were started for it are stopped with it. Ray must be connected."""
    app.check_port(settings.serve.host, settings.serve.port)
    try:
        load_stores(settings, version)
        yield app.start(settings, version.number)
    finally:
        # Ray prints to the driver's screen that the Serve controller did not live to answer its own shutdown, which is what was asked of it
        with contextlib.redirect_stdout(io.StringIO()):
            app.stop(settings)
            time.sleep(0.3)
