"""What the judge of a second run knows of the first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_app.serving import _shown_or_fed_back
from ugt.schema import Event
from ugt.stores import embedded
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
        await features.begin_load()  # a new load forgets what was materialised; the stream and the exposures stay
        await features.close()

    asyncio.run(earlier_run())
    assert asyncio.run(_shown_or_fed_back(url, 24, ["u", "v"])) == {"u": {"shown", "fed back"}, "v": set()}
