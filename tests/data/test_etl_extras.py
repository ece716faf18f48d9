"""What may stand beside a source: plot texts, links of another version, the system's own event log; and users who were erased stay out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import etl, event_log
from ugt.artifacts import EVENT_LOG, EVENTS, ITEMS, QUARANTINE, USERS, read_table
from ugt.erasure import Erased
from ugt.schema import UGTError
from ugt.settings import EtlConfig

DAY = 1_709_251_200  # 2024-03-01


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "movielens"
    folder.mkdir()
    (folder / "movies.csv").write_text("movieId,title,genres\n1,Toy Story (1995),(no genres listed)\n2,Jumanji (1995),Adventure\n3,Heat (1995),Crime\n")
    ratings = [f"{u},{m},4.0,{100 + m}" for u in (7, 8, 9) for m in (1, 2, 3)]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]) + "\n")
    return folder


def run(folder: Path, out: Path, home: Path | None = None, **settings: Any) -> dict[str, Any]:
    return etl.run("movielens", folder, None, EtlConfig(blocks=2, **settings), out, home=home)


@pytest.mark.ray
def test_plot_texts_reach_the_items_by_the_links_of_another_version(ray_session: None, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0114709,862\n2,0113497,8844\n")
    plots = tmp_path / "plots"
    plots.mkdir()
    header = "adult,belongs_to_collection,budget,genres,homepage,id,imdb_id,original_language,original_title,overview,popularity,poster_path,release_date,title"
    row = "False,,0,\"[{'id': 16, 'name': 'Animation'}]\",,862,tt0114709,en,Toy Story,\"Toys, alive.\",1,,1995-10-30,Toy Story"
    (plots / "movies_metadata.csv").write_text(f"{header}\n{row}\nshort\n", encoding="utf-8")
    figures = run(folder, tmp_path / "out", links=tmp_path / "links.csv", plots_dir=plots)
    items = read_table(tmp_path / "out" / "items", ITEMS).to_pylist()
    assert [(i["imdb_id"], i["description"], i["genres"]) for i in items] == [
        ("tt0114709", "Toys, alive.", ["Animation"]),
        ("tt0113497", None, ["Adventure"]),
        (None, None, ["Crime"]),
    ]
    assert figures["tables"]["movies_metadata"] == {"rows_in": 2, "rows_out": 1, "rows_filtered": 0, "rows_duplicate": 0, "rows_quarantined": 1}
    assert [(r["table"], r["file"]) for r in read_table(tmp_path / "out" / "quarantine", QUARANTINE).to_pylist()] == [
        ("movies_metadata", "movies_metadata.csv")
    ]
    config = EtlConfig(links=tmp_path / "links.csv", plots_dir=plots)
    assert {"links:links.csv", "movies_metadata.csv:movies_metadata.csv"} <= set(etl.checksums("movielens", folder, None, config))
    with pytest.raises(UGTError, match=r"plots_dir describes films"):
        etl.plan("sequences", _sequences(tmp_path), None, config)


@pytest.mark.ray
def test_the_event_log_is_read_beside_the_source(ray_session: None, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "event_log"
    rows = [("a", "7", "2", DAY + 5), ("a", "7", "2", DAY + 5), ("b", "new", "1", DAY + 1), ("c", "7", "gone", DAY)]
    logged = [
        {
            "event_id": e,
            "user_id": u,
            "item_id": i,
            "action": "like",
            "value": None,
            "timestamp": t,
            "received_at": t,
            "request_id": None,
            "details": "{}",
            "order": n,
        }
        for n, (e, u, i, t) in enumerate(rows)
    ]
    event_log.write_part(pa.Table.from_pylist(logged, schema=EVENT_LOG), log / "date=2024-03-01")
    figures = run(folder, tmp_path / "out", event_log=log)
    events = read_table(tmp_path / "out" / "events", EVENTS).to_pylist()
    assert figures["events"] == len(events) == 11
    assert [(e["user_id"], e["item_id"], e["action"]) for e in events if e["timestamp"] >= DAY] == [("7", "2", "like"), ("new", "1", "like")]
    assert figures["tables"]["event_log"] == {"rows_in": 4, "rows_out": 2, "rows_filtered": 1, "rows_duplicate": 1, "rows_quarantined": 0}
    assert read_table(tmp_path / "out" / "users", USERS)["user_id"].to_pylist() == ["7", "8", "9", "new"]
    before = etl.checksums("movielens", folder, None, EtlConfig(event_log=log))
    event_log.write_part(pa.Table.from_pylist(logged[:1], schema=EVENT_LOG), log / "date=2024-03-01")
    assert etl.checksums("movielens", folder, None, EtlConfig(event_log=log)) != before  # new events are a new input


@pytest.mark.ray
def test_an_erased_user_does_not_come_back_with_the_source(ray_session: None, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    Erased.load(home).begin("8")
    figures = run(folder, tmp_path / "out", home)
    assert set(read_table(tmp_path / "out" / "events", EVENTS)["user_id"].to_pylist()) == {"7", "9"}
    assert figures["tables"]["ratings"] == {"rows_in": 9, "rows_out": 6, "rows_filtered": 3, "rows_duplicate": 0, "rows_quarantined": 0}
    json.dumps(figures)


def _sequences(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sequences.txt").write_text("u a b\n")
    return tmp_path / "s"
