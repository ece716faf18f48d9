"""IMDb's files at scale: every broken row is accounted for, and the parts are what one process of polars makes of the whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data import etl
from data.quality import Tally
from data.sources import imdb
from data.sources.imdb import Known
from ray_app.bench import etl_polars
from ray_app.bench.etl import pipeline, same
from ugt.artifacts import EPISODES, read_table
from ugt.settings import EtlConfig
from ugt.synthetic import write_imdb_at_scale


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("imdb")
    return folder, write_imdb_at_scale(0.001, 1, folder, processes=1)["files"]


@pytest.fixture(scope="module")
def made(ray_session: None, files: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    return out, pipeline(files[0], out)


@pytest.mark.ray
def test_every_broken_row_that_was_written_is_in_quarantine(files: tuple[Path, dict[str, Any]], made: tuple[Path, dict[str, Any]]) -> None:
    for table, written in files[1].items():
        counts = made[1]["tables"][table]
        assert counts["rows_in"] == written["rows"], table
        assert counts["rows_quarantined"] == sum(n for kind, n in written["broken"].items() if not kind.startswith("duplicate")), table


@pytest.mark.ray
def test_the_parts_are_what_one_process_of_polars_makes_of_the_whole(
    files: tuple[Path, dict[str, Any]], made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    found = etl_polars.run(files[0], tmp_path)
    assert (found["items"], found["credits"]) == (made[1]["items"], made[1]["credits"])
    assert same(made[0], tmp_path)
    credits = pl.read_parquet(tmp_path / "credits.parquet")
    credits.with_columns(ordering=pl.col("ordering") + (pl.col("item_index") == 5)).write_parquet(tmp_path / "credits.parquet")
    assert not same(made[0], tmp_path)  # the comparison sees one value


@pytest.mark.ray
def test_episodes_are_items_where_they_are_asked_for(files: tuple[Path, dict[str, Any]], made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    config = EtlConfig(title_types=(*EtlConfig().title_types, "tvEpisode"))
    tally, bad = Tally(), []  # type: tuple[Tally, list[pl.DataFrame]]
    etl.catalogue(etl.plan("imdb", files[0], None), config, folder, tally, bad)
    items = pl.read_parquet(folder / "items")
    assert items["item_index"].to_list() == list(range(items.height))
    assert items["item_id"].to_list() == sorted(items["item_id"].to_list())
    episodes = pl.DataFrame(pl.from_arrow(read_table(folder / "episodes", EPISODES)))
    assert episodes.join(items, on="item_id", how="semi").height == episodes.height > 5_000
    assert set(items.join(episodes, on="item_id", how="semi")["item_type"]) == {"episode"}


def test_slots_follow_the_ids_as_text() -> None:
    numbers = np.array([2_000_000, 10_000_000, 1, 999_999_999, 10_000_000, 1_000_000], np.int32)
    known = Known.of(numbers)
    ids = sorted({f"tt{n:07d}" for n in numbers.tolist()})
    assert [ids[s] for s in known.slots(pl.Series(numbers))] == [f"tt{n:07d}" for n in numbers.tolist()]
    assert known.slots(pl.Series([3, 10_000_001])).tolist() == [-1, -1]


def test_the_first_row_of_a_key_stays_whatever_the_order_they_come_in() -> None:
    tally = Tally()
    rows = pl.DataFrame({"slot": [1, 0, 1, 1], "ordering": [1, 1, 1, 2], "row": [9, 4, 3, 5], "person": [7, 8, 9, 7], "role": [0, 1, 2, 0]})
    assert imdb.first_of_each("title.principals", rows, tally)["row"].to_list() == [4, 3, 5]
    assert tally.counts["title.principals"] == {"rows_in": 0, "rows_out": 3, "rows_filtered": 0, "rows_duplicate": 1, "rows_quarantined": 0}
