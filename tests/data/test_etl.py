"""ETL on generated files with damage done to them: every row is accounted for, every bad one has its reason."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data import etl
from data.quality import Tally
from ugt.artifacts import CREDITS, EVENTS, ITEMS, PEOPLE, QUARANTINE, USERS, read_table
from ugt.schema import UGTError
from ugt.settings import EtlConfig
from ugt.synthetic import SampleConfig, write_sample

CONFIG = EtlConfig(blocks=3)
SAMPLE = SampleConfig(titles=120, users=30, events=600, seed=2)


def append(path: Path, lines: list[str]) -> None:
    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    data += "".join(line + ("\n" if packed else "\r\n") for line in lines).encode()
    path.write_bytes(gzip.compress(data) if packed else data)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(SAMPLE, folder)
    return folder


@pytest.fixture(scope="module")
def damaged(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "s"
    shutil.copytree(sample, folder)
    ratings = (sample / "movielens" / "ratings.csv").read_text().splitlines()
    append(folder / "movielens" / "ratings.csv", [ratings[1], "7,999999,3.0,1500000000", "7,not enough", "7,1,great,1500000000", "7,1,9.5,1500000000"])
    append(folder / "movielens" / "movies.csv", ['999,"Bad\x00, The (1990)",Drama'])
    append(folder / "imdb" / "title.basics.tsv.gz", ["tt0000001\tmovie\tOld\tOld\t0\t19x4\t\\N\t\\N\tDrama", "nonsense"])
    append(folder / "imdb" / "title.principals.tsv.gz", ["tt0000001\t1\tnobody\tactor\t\\N\t\\N"])
    return folder


@pytest.fixture(scope="module")
def made(ray_session: None, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("etl")
    return out, etl.run("sample", damaged / "movielens", damaged / "imdb", CONFIG, out)


@pytest.mark.ray
def test_rows_in_are_rows_out_filtered_duplicate_or_quarantined(made: tuple[Path, dict[str, Any]]) -> None:
    _, figures = made
    for table, n in figures["tables"].items():
        assert n["rows_in"] == n["rows_out"] + n["rows_filtered"] + n["rows_duplicate"] + n["rows_quarantined"], table
    assert figures["tables"]["ratings"] == {"rows_in": 605, "rows_out": 600, "rows_filtered": 0, "rows_duplicate": 1, "rows_quarantined": 4}
    assert figures["tables"]["movies"]["rows_out"] == figures["items"] == 120
    json.dumps(figures)


@pytest.mark.ray
def test_bad_rows_lie_in_quarantine_with_file_row_and_reason(made: tuple[Path, dict[str, Any]], damaged: Path) -> None:
    out, figures = made
    rows = read_table(out / "quarantine", QUARANTINE).to_pylist()
    basics = len(gzip.decompress((damaged / "imdb" / "title.basics.tsv.gz").read_bytes()).splitlines()) - 1
    found = {(r["file"], r["row"]): (r["reason"], r["raw"]) for r in rows}
    assert figures["quarantined"] == len(rows) == 8
    assert found["ratings.csv", 602] == ("unknown movie 999999", "7\t999999\t3.0\t1500000000")
    assert found["ratings.csv", 603] == ("2 columns instead of 4", "7,not enough")
    assert found["ratings.csv", 604][0] == "rating is not a number: great"
    assert found["ratings.csv", 605][0] == "rating is above 5: 9.5"
    assert found["movies.csv", 121][0] == "control characters"
    assert found["title.basics.tsv.gz", basics - 1][0] == "startYear is not a number: 19x4"
    assert found["title.basics.tsv.gz", basics][0] == "1 columns instead of 9"
    assert any(file == "title.principals.tsv.gz" and reason == "nconst is malformed: nobody" for (file, _), (reason, _) in found.items())


@pytest.mark.ray
def test_tables_have_their_schemas_and_belong_together(made: tuple[Path, dict[str, Any]]) -> None:
    out, figures = made
    items, people, credits, users, events = (
        pl.DataFrame(pl.from_arrow(read_table(out / name, schema)))
        for name, schema in (("items", ITEMS), ("people", PEOPLE), ("credits", CREDITS), ("users", USERS), ("events", EVENTS))
    )
    assert items["item_id"].to_list() == sorted(items["item_id"].to_list())
    assert items["item_index"].to_list() == list(range(items.height))
    index = dict(zip(items["item_id"], items["item_index"], strict=True))
    assert all(index[i] == n for i, n in events.select("item_id", "item_index").iter_rows())
    assert all(index[i] == n for i, n in credits.select("item_id", "item_index").iter_rows())
    assert set(credits["role"]) == {"actor", "director", "writer"}
    assert set(credits["person_id"]) == set(people["person_id"])
    assert users["user_id"].to_list() == sorted(set(events["user_id"]))
    assert events["event_id"].n_unique() == events.height == figures["events"]
    assert set(items["item_type"]) <= {"movie", "series", "video"}  # the games and episodes of title.basics stayed out
    assert items.filter(pl.col("title").str.starts_with(", ") | pl.col("title").str.ends_with(")")).height == 0


@pytest.mark.ray
def test_a_second_run_writes_the_same_bytes(made: tuple[Path, dict[str, Any]], damaged: Path, tmp_path: Path) -> None:
    out, figures = made
    assert etl.run("sample", damaged / "movielens", damaged / "imdb", CONFIG.model_copy(update={"blocks": 5}), tmp_path) == figures
    for path in sorted(out.rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / path.relative_to(out)).read_bytes(), path


@pytest.mark.ray
def test_without_imdb_the_movies_own_title_year_and_genres_stand(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"City of Lost Children, The (Cité, La) (1995)",Adventure|Children\n'
        '2,Untold,(no genres listed)\n3,"L\'Avventura (1960)",Drama\n',
        encoding="utf-8",
    )
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,10\n1,2,3.5,10\n1,3,2.0,9\n")
    etl.run("movielens", tmp_path, None, CONFIG, tmp_path / "out")
    items = read_table(tmp_path / "out" / "items", ITEMS).to_pylist()
    assert [(i["title"], i["year"], i["genres"]) for i in items] == [
        ("The City of Lost Children (Cité, La)", 1995, ["Adventure", "Family"]),
        ("Untold", None, []),
        ("L'Avventura", 1960, ["Drama"]),
    ]
    events = read_table(tmp_path / "out" / "events", EVENTS).to_pylist()
    assert [e["item_id"] for e in events] == ["3", "1", "2"]  # time first, then the place in the file


@pytest.mark.ray
def test_sequences_keep_their_order_and_texts_become_titles(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "sequences.txt").write_text("u1 b a c\nu2 c b\n\nlonely\n")
    (tmp_path / "items.tsv").write_text("a\tAlpha\nb\tBeta\nz\tNever seen\nbroken line\n")
    figures = etl.run("sequences", tmp_path, None, CONFIG, tmp_path / "out")
    events = read_table(tmp_path / "out" / "events", EVENTS).to_pylist()
    assert [(e["user_id"], e["item_id"]) for e in events] == [("u1", "b"), ("u1", "a"), ("u1", "c"), ("u2", "c"), ("u2", "b")]
    items = read_table(tmp_path / "out" / "items", ITEMS).to_pylist()
    assert [(i["item_id"], i["title"]) for i in items] == [("a", "Alpha"), ("b", "Beta"), ("c", "item c"), ("z", "Never seen")]
    assert figures["tables"]["sequences"]["rows_quarantined"] == 2
    assert figures["tables"]["texts"]["rows_quarantined"] == 1


@pytest.mark.ray
def test_amazon_titles_come_by_rank_and_an_undated_event_stays_in_its_place(ray_session: None, tmp_path: Path) -> None:
    def packed(name: str, text: str) -> None:
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))

    packed("Set.txt.gz", "1 1 2 3\n2 3 1\n")
    packed("datamaps.json.gz", json.dumps({"id2item": {"1": "B1", "2": "B2", "3": "B3"}}))
    packed("asin_rank.tsv.gz", "original_asin\tmapped_item_id\nB1\t0\nB2\t1\nB3\t2\n")
    packed("item_info.json.gz", json.dumps({"0": {"title": "Soap &amp; Water", "categories": [["Beauty", "Bath", "Soap"]]}, "1": {"categories": []}}))
    packed("idgenrec.item_text_ids.txt.gz", "B2 plain brush\n")
    packed("timestamps.tsv.gz", "user\titem\ttimestamp\n1\t1\t100\n1\t2\t\n1\t3\t300\n2\t3\t50\n2\t9\t60\n")
    figures = etl.run("amazon", tmp_path, None, CONFIG, tmp_path / "out")
    items = read_table(tmp_path / "out" / "items", ITEMS).to_pylist()
    assert [(i["title"], i["genres"]) for i in items] == [("Soap & Water", ["Bath", "Soap"]), ("plain brush", []), ("item 3 (B3)", [])]
    events = read_table(tmp_path / "out" / "events", EVENTS).to_pylist()
    assert [(e["user_id"], e["item_id"], e["timestamp"]) for e in events] == [("1", "1", 100), ("1", "2", 100), ("1", "3", 300), ("2", "3", 50), ("2", "1", 50)]
    assert figures["tables"]["timestamps"] == {"rows_in": 5, "rows_out": 3, "rows_filtered": 2, "rows_duplicate": 0, "rows_quarantined": 0}


@pytest.mark.ray
def test_imdb_alone_gets_generated_events_and_says_so(ray_session: None, sample: Path, tmp_path: Path) -> None:
    figures = etl.run("imdb", sample / "imdb", None, CONFIG, tmp_path, SampleConfig(users=20, events=400))
    assert figures["generated_events"] is True
    events = read_table(tmp_path / "events", EVENTS)
    items = read_table(tmp_path / "items", ITEMS).to_pylist()
    assert events.num_rows == 400
    assert all(items[i]["item_id"] == name for i, name in zip(events["item_index"].to_pylist(), events["item_id"].to_pylist(), strict=True))
    assert all(i["item_id"] == i["imdb_id"] for i in items)
    assert (tmp_path / "truth.parquet").is_file()


@pytest.mark.ray
def test_a_cut_off_file_is_named_with_the_last_good_row(ray_session: None, sample: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imdb"
    shutil.copytree(sample / "imdb", folder)
    path = folder / "title.akas.tsv.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UGTError, match=r"title.akas.tsv.gz ends in the middle of a record after row .* Fetch it again"):
        etl.run("sample", sample / "movielens", folder, CONFIG, tmp_path / "out")


@pytest.mark.ray
def test_an_empty_catalogue_says_so(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,10\n")
    with pytest.raises(UGTError, match=r"catalogue of .* is empty"):
        etl.run("movielens", tmp_path, None, CONFIG, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("movielens", None, "needs the folder"),
        ("movielens", [], "holds no movies.csv and no ratings.csv"),
        ("movielens", ["movies.csv"], "holds no ratings.csv"),
        ("imdb", ["title.ratings.tsv"], "holds no title.basics.tsv.gz"),
        ("amazon", [], "must hold one <set>.txt.gz"),
        ("sequences", ["a.txt", "b.txt"], "found a.txt, b.txt"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, kind: Any, names: list[str] | None, message: str) -> None:
    for name in names or []:
        (tmp_path / name).write_text("")
    with pytest.raises(UGTError, match=message):
        etl.checksums(kind, tmp_path if names is not None else None, None)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for kind in ("imdb", "movielens", "amazon", "sequences"):
        with pytest.raises(UGTError, match="there is no folder"):
            etl.plan(kind, tmp_path / "nowhere", None)  # type: ignore[arg-type]


def test_checksums_change_with_a_file_and_name_no_folder(sample: Path, tmp_path: Path) -> None:
    before = etl.checksums("sample", sample / "movielens", sample / "imdb")
    shutil.copytree(sample / "movielens", tmp_path / "m")
    append(tmp_path / "m" / "ratings.csv", ["1,1,1.0,1"])
    after = etl.checksums("sample", tmp_path / "m", sample / "imdb")
    assert {k for k in before if before[k] != after[k]} == {"ratings:ratings.csv"}
    assert not any("/" in name for name in before)


def test_counts_that_do_not_add_up_stop_the_run() -> None:
    tally = Tally()
    tally.add("t", **{"in": 3, "out": 2})
    with pytest.raises(UGTError, match="rows of t don't add up"):
        tally.figures()


def test_tables_of_one_kernel_travel_as_bytes() -> None:
    from data.distribute import LOOSE, packed, unpacked

    rows = packed([(LOOSE, "a", pl.DataFrame({"x": [1]})), (LOOSE, "none", pl.DataFrame({"x": []})), (3, "b", pl.DataFrame({"y": ["z"]}))])
    assert rows["part"].to_pylist() == [LOOSE, 3]
    assert [unpacked(data).to_dicts() for data in rows["data"]] == [[{"x": 1}], [{"y": "z"}]]


@pytest.mark.ray
def test_held_out_items_lie_apart_from_all_that_later_steps_read(ray_session: None, sample: Path, tmp_path: Path) -> None:
    figures = etl.run("sample", sample / "movielens", sample / "imdb", CONFIG.model_copy(update={"hold_out": 0.1}), tmp_path)
    schemas = (("items", ITEMS), ("credits", CREDITS), ("events", EVENTS))
    kept, held = ({name: read_table(folder / name, schema) for name, schema in schemas} for folder in (tmp_path, tmp_path / "held_out"))
    assert (figures["items"], figures["held_out_items"]) == (kept["items"].num_rows, held["items"].num_rows) == (108, 12)
    assert figures["events"] == kept["events"].num_rows == 600 - held["events"].num_rows
    for table in kept.values():
        assert not set(table["item_id"].to_pylist()) & set(held["items"]["item_id"].to_pylist())
        assert max(table["item_index"].to_pylist()) < 108
    with pytest.raises(UGTError, match=r"etl\.hold_out .* need events of people"):
        etl.run("imdb", sample / "imdb", None, CONFIG.model_copy(update={"hold_out": 0.1}), tmp_path / "imdb", SAMPLE)
