"""What a version brings to the stores, and what the judge of a second run knows of the first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_app import serving
from ray_app.serving import Version, _shown_or_fed_back
from ugt.schema import Event
from ugt.settings import Settings
from ugt.stores import embedded
from ugt.stores.feature_load import FeatureLoad
from ugt.stores.features import OnlineFeatures


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield embedded.ensure_redis(tmp_path)
    embedded.stop(tmp_path)


def test_what_was_shown_and_what_was_fed_back_without_being_shown_is_known_to_the_next_run(url: str) -> None:
    """The server withholds both; a judge that knows the first alone calls the rest a page that lacks a legal item."""

    async def earlier_run() -> None:
        features = OnlineFeatures(url)
        await features.record_exposure("u", ["shown"], time.time())
        for user_id in ("u", "somebody else"):
            await features.append(Event(event_id=user_id, user_id=user_id, item_id="fed back", action="complete", value=None, timestamp=1), {})
        await (await FeatureLoad.begin(features)).switch("k")  # a new load forgets what was materialised; the stream and the exposures stay
        await features.close()

    asyncio.run(earlier_run())
    assert asyncio.run(_shown_or_fed_back(url, 24, ["u", "v"])) == {"u": {"shown", "fed back"}, "v": set()}


def test_a_version_made_without_fused_vectors_brings_the_spaces_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(serving, "materialize", lambda *folders, **named: given.update(named) or {})
    steps = {name: tmp_path / name for name in ("etl", "histories", "word2vec")}
    serving.load_stores(Settings(home=tmp_path), Version("ugt", "v0001-00000000", tmp_path / "version", steps))
    assert given["spaces"] == {"word2vec": tmp_path / "word2vec/word2vec.npy"}
