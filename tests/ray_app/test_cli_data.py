"""`ugt data ingest --from events` and `compact`: what people did reaches the event log of the home, and the commands say so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data import event_log
from ray_app.cli_data import data_app
from ugt.schema import Event, UGTError
from ugt.stores import embedded
from ugt.stores.features import OnlineFeatures


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("UGT_HOME", str(tmp_path))
    yield tmp_path
    embedded.stop(tmp_path)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(data_app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_events_are_ingested_and_compacted(home: Path) -> None:
    async def send() -> None:
        features = OnlineFeatures(embedded.ensure_redis(home))
        for n in range(3):
            await features.append(Event(event_id=f"e{n}", user_id="u", item_id="i", action="like", timestamp=1_709_251_200 + n), {})
        await features.close()

    asyncio.run(send())
    out = home / "figures.json"
    run("ingest", "--from", "events", "--json", str(out))
    assert json.loads(out.read_text())["written"] == 3
    run("ingest", "--from", "events", "--json", str(out))
    assert json.loads(out.read_text())["written"] == 0
    run("compact", "--json", str(out))
    assert json.loads(out.read_text())["rows"] == 3
    assert event_log.read_day(home / "event_log", "2024-03-01")["event_id"].to_pylist() == ["e0", "e1", "e2"]


def test_what_cannot_be_asked_for_is_named(home: Path) -> None:
    with pytest.raises(UGTError, match="there is no such folder"):
        run("ingest", "--from", "nowhere")
    with pytest.raises(UGTError, match="YYYY-MM-DD"):
        run("backfill", "--from", "yesterday", "--to", "2024-03-01")
