"""The loaders on real files, counted against what their publishers say. Needs UGT_DATA_DIR; the files may not be passed on with the project."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from data import etl, histories
from ugt.artifacts import EVENTS, ITEMS, read_table
from ugt.settings import EtlConfig, HistoryConfig

ROOT = Path(os.environ.get("UGT_DATA_DIR", ""))
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        not os.environ.get("UGT_DATA_DIR") or not ROOT.is_dir(),
        reason="UGT_DATA_DIR does not name a folder with real data sets (movielens/, imdb/, amazon-2014/)",
    ),
]


def test_latest_small_with_the_heads_of_imdb(ray_session: None, tmp_path: Path) -> None:
    figures = etl.run("movielens", ROOT / "movielens/ml-latest-small", ROOT / "imdb/tsv-head-2025-08", EtlConfig(), tmp_path)
    assert (figures["events"], figures["users"], figures["items"], figures["quarantined"]) == (100_836, 610, 9_742, 0)
    assert figures["items_with_events"] == 9_724
    assert figures["covered_by_imdb"] == 584  # of the 9,742, by the first 50,001 lines of title.basics
    items = pl.DataFrame(pl.from_arrow(read_table(tmp_path / "items", ITEMS)))
    assert items["imdb_id"].null_count() == 0
    assert items.filter(pl.col("item_id") == "318").select("title", "year", "imdb_id").row(0) == ("The Shawshank Redemption", 1994, "tt0111161")
    assert items["year"].null_count() == 12  # titles of movies.csv without a year
    figures = histories.run(tmp_path, HistoryConfig(), tmp_path / "h")
    assert (figures["evaluated_users"], figures["length"]["min"], figures["length"]["max"]) == (610, 20, 2_698)


def test_1m_with_the_links_of_25m_beside_it(ray_session: None, tmp_path: Path) -> None:
    """The part of the ratings that has times: users 1 to 2,999."""
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    for path in (*(ROOT / "movielens/ml-1m").glob("*.dat*"), ROOT / "movielens/ml-25m/links.csv.gz"):
        (folder / path.name).symlink_to(path)
    figures = etl.run("movielens", folder, ROOT / "imdb/tsv-head-2025-08", EtlConfig(), tmp_path)
    assert (figures["events"], figures["users"], figures["items"], figures["quarantined"]) == (487_650, 2_999, 3_883, 0)
    assert (figures["items_with_events"], figures["covered_by_imdb"]) == (3_615, 357)
    items = pl.DataFrame(pl.from_arrow(read_table(tmp_path / "items", ITEMS)))
    assert items["imdb_id"].count() == 3_849


def test_sports_with_its_dates(ray_session: None, tmp_path: Path) -> None:
    figures = etl.run("amazon", ROOT / "amazon-2014/Sports_and_Outdoors", None, EtlConfig(), tmp_path)
    assert (figures["users"], figures["items"], figures["events"]) == (35_598, 18_357, 296_337)
    assert figures["tables"]["timestamps"]["rows_out"] == 293_400


def test_beauty_with_its_titles_and_dates(ray_session: None, tmp_path: Path) -> None:
    figures = etl.run("amazon", ROOT / "amazon-2014/Beauty", None, EtlConfig(), tmp_path)
    assert (figures["users"], figures["items"], figures["events"]) == (22_363, 12_101, 198_502)
    assert figures["tables"]["timestamps"]["rows_out"] == 198_215
    items = pl.DataFrame(pl.from_arrow(read_table(tmp_path / "items", ITEMS)))
    assert items.filter(pl.col("title").str.contains("&amp;")).height == 0
    assert items.filter(pl.col("genres").list.len() > 0).height > 11_000
    events = pl.DataFrame(pl.from_arrow(read_table(tmp_path / "events", EVENTS)))
    first = events.filter(pl.col("user_id") == "1").sort("timestamp", "order")["item_id"].to_list()
    assert first == ["1", "2", "3", "4", "5"]  # the line of the file


def test_toys_uses_the_numbering_of_its_titles(ray_session: None, tmp_path: Path) -> None:
    figures = etl.run("amazon", ROOT / "amazon-2014/Toys_and_Games", None, EtlConfig(), tmp_path)
    assert (figures["users"], figures["items"], figures["events"]) == (19_412, 11_924, 167_597)
    assert figures["tables"]["timestamps"]["rows_out"] == 165_247
