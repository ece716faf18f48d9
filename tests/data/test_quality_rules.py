"""Every rule of the canonical tables: it holds on a sound run and fails on a run that breaks it, over several part files; a CRITICAL one stops the run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import quality_check
from data.quality_check import check
from data.quality_queries import SCHEMAS, Ascending, Refers, Tables, Unique
from data.quality_report import PAGE, run, tables_of
from data.quality_rules import rules
from ugt.artifacts import Manifest, write_text
from ugt.schema import UGTError
from ugt.settings import QualityConfig

NOW = datetime(2026, 11, 24, tzinfo=UTC)
World = dict[str, Any]


def sound() -> World:
    """A run without a fault: 6 items, 4 people, 6 credits, 3 users, 12 events, 1 quarantined row, and its figures."""
    items = [
        {"item_index": i, "item_id": f"tt000000{i}", "item_type": "movie", "title": f"Film {i}", "original_title": f"Film {i}", "year": 1990 + i}
        | {"runtime_minutes": 90, "genres": ["Drama", "War"], "countries": ["FR"], "rating": 7.5, "votes": 20, "description": None, "imdb_id": f"tt000000{i}"}
        for i in range(6)
    ]
    people = [{"person_id": f"nm{p}", "name": f"Ada {p}", "birth_year": 1950, "professions": ["actor"]} for p in range(4)]
    credits = [{"item_index": i, "item_id": f"tt000000{i}", "person_id": f"nm{i % 4}", "role": "actor", "ordering": 1} for i in range(6)]
    users = [{"user_id": f"u{u}", "gender": "F", "age": 30, "occupation": "writer"} for u in range(3)]
    events = [
        {"event_id": f"e{n}", "user_id": f"u{n % 3}", "item_id": f"tt000000{n % 6}", "item_index": n % 6, "action": "rate", "value": 4.0}
        | {"timestamp": 1_500_000_000 + n, "order": n}
        for n in range(12)
    ]
    quarantine = [{"table": "ratings", "file": "ratings.csv", "row": 7, "reason": "rating is not a number: great", "raw": "1\t2\tgreat\t3"}]
    tables = {"ratings": {"rows_in": 113, "rows_out": 112, "rows_filtered": 0, "rows_duplicate": 0, "rows_quarantined": 1}}
    figures = {"source": "sample", "tables": tables, "items": 6, "people": 4, "credits": 6, "users": 3, "events": 12, "quarantined": 1}
    return {"items": items, "people": people, "credits": credits, "users": users, "events": events, "quarantine": quarantine, "figures": figures}


def written(world: World, folder: Path, key: str = "k0") -> Path:
    """The tables in two parts each, and the manifest of the run. Figures of row counts follow the tables unless the world says otherwise."""
    for name, schema in SCHEMAS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = world[name]
        for part, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            pq.write_table(pa.Table.from_pylist(some, schema=world.get("schemas", {}).get(name, schema)), folder / name / f"part-{part:05}.parquet")
    counts = {name: len(world[name]) for name in ("items", "people", "credits", "users", "events")} if not world.get("false_counts") else {}
    manifest = Manifest(step="etl", key=key, version=1, inputs={}, settings={}, figures=world["figures"] | counts, seconds=1, files={})
    write_text(folder / "manifest.json", manifest.model_dump_json())
    return folder


def verdicts(folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    return {record["name"]: record for record in check(tables_of(folder)[0], rules(NOW), **settings)}


def put(table: str, column: str, *values: Any) -> Callable[[World], None]:
    """A world with these values in the last rows of a column."""

    def change(world: World) -> None:
        for row, value in zip(world[table][-len(values) :], values, strict=True):
            row[column] = value

    return change


def both(*changes: Callable[[World], None]) -> Callable[[World], None]:
    return lambda world: [change(world) for change in changes] and None


def empty(table: str) -> Callable[[World], None]:
    return lambda world: world[table].clear()


def again(table: str, **other: Any) -> Callable[[World], None]:
    """The first row once more at the end, in the other part."""
    return lambda world: world[table].append(world[table][0] | other)


def figure(table: str, **numbers: int) -> Callable[[World], None]:
    return lambda world: world["figures"]["tables"][table].update(numbers)


def other_type(table: str, column: str, kind: pa.DataType) -> Callable[[World], None]:
    def change(world: World) -> None:
        schema = SCHEMAS[table]
        world["schemas"] = {table: schema.set(schema.get_field_index(column), pa.field(column, kind))}

    return change


def false_count(world: World) -> None:
    world["false_counts"] = True
    world["figures"]["events"] = 13


BREAKS: dict[str, Callable[[World], Any]] = {
    "accounting.balanced": figure("ratings", rows_out=111),
    "accounting.written": false_count,
    "quarantine.kept": empty("quarantine"),
    "quarantine.few": figure("ratings", rows_out=103, rows_quarantined=10),
    "items.columns": other_type("items", "year", pa.int64()),
    "people.columns": other_type("people", "name", pa.binary()),
    "credits.columns": other_type("credits", "ordering", pa.float64()),
    "users.columns": other_type("users", "age", pa.int64()),
    "events.columns": other_type("events", "timestamp", pa.timestamp("s")),
    "items.not_empty": empty("items"),
    "items.index_dense": put("items", "item_index", 6),
    "items.id_present": put("items", "item_id", ""),
    "items.id_unique": put("items", "item_id", "tt0000000"),
    "items.id_ascending": put("items", "item_id", "tt0000009", "tt0000005"),
    "items.type_known": put("items", "item_type", "game"),
    "items.title_present": put("items", "title", None),
    "items.title_not_blank": put("items", "title", " \t"),
    "items.title_clean": put("items", "title", "Bad\x00 title"),
    "items.title_length": put("items", "title", "x" * 501),
    "items.year_possible": put("items", "year", 1799),
    "items.year_plausible": put("items", "year", 2115),
    "items.year_known": put("items", "year", None, None, None, None),
    "items.runtime_not_negative": put("items", "runtime_minutes", -1),
    "items.runtime_plausible": put("items", "runtime_minutes", 51_420),
    "items.rating_range": put("items", "rating", 0.5),
    "items.votes_not_negative": put("items", "votes", -1),
    "items.rating_has_votes": put("items", "votes", None),
    "items.genres_clean": put("items", "genres", ["Drama", " "]),
    "items.genres_once": put("items", "genres", ["Drama", "Drama"]),
    "items.genres_known": put("items", "genres", [], [], [], []),
    "items.countries_clean": put("items", "countries", ["FR", None]),
    "items.imdb_id_form": put("items", "imdb_id", "nm0000001"),
    "items.imdb_id_once": put("items", "imdb_id", "tt0000000"),
    "items.has_events": both(put("events", "item_index", *[0] * 12), put("events", "item_id", *["tt0000000"] * 12)),
    "people.id_present": put("people", "person_id", None),
    "people.id_unique": again("people"),
    "people.name_present": put("people", "name", ""),
    "people.birth_year_plausible": put("people", "birth_year", 2090),
    "people.professions_clean": put("people", "professions", [""]),
    "people.has_credits": again("people", person_id="nm9"),
    "credits.item_known": put("credits", "item_index", 3),
    "credits.item_present": both(put("credits", "item_index", None), put("credits", "item_id", None)),
    "credits.person_present": put("credits", "person_id", None),
    "credits.person_known": put("credits", "person_id", "nm9"),
    "credits.role_known": put("credits", "role", "gaffer"),
    "credits.ordering": put("credits", "ordering", None),
    "credits.once": again("credits", ordering=5),
    "users.id_present": put("users", "user_id", ""),
    "users.id_unique": again("users"),
    "users.age_range": put("users", "age", 121),
    "users.gender_not_blank": put("users", "gender", ""),
    "users.occupation_not_blank": put("users", "occupation", " "),
    "users.has_events": again("users", user_id="u9"),
    "events.not_empty": empty("events"),
    "events.id_present": put("events", "event_id", None),
    "events.id_unique": again("events", timestamp=1_400_000_000),
    "events.user_present": put("events", "user_id", None),
    "events.user_known": put("events", "user_id", "u9"),
    "events.item_present": both(put("events", "item_index", None), put("events", "item_id", None)),
    "events.item_known": put("events", "item_id", "tt0000001"),
    "events.action_known": put("events", "action", "shrug"),
    "events.value_finite": put("events", "value", float("nan")),
    "events.rating_present": put("events", "value", None),
    "events.rating_range": put("events", "value", 11.0),
    "events.time_present": put("events", "timestamp", None),
    "events.time_past": put("events", "timestamp", 1_500_000_000_000),  # milliseconds
    "events.time_plausible": put("events", "timestamp", 12),
    "events.time_known": put("events", "timestamp", *[0] * 7),
    "events.order_present": put("events", "order", None),
    "events.once": again("events", event_id="e99"),
}


def test_every_rule_holds_on_a_sound_run(tmp_path: Path) -> None:
    found = verdicts(written(sound(), tmp_path))
    assert {name for name, record in found.items() if record["verdict"] != "passed"} == set()
    assert found["events.user_known"]["rows"] == 12


def test_every_rule_has_an_example_that_breaks_it() -> None:
    assert set(BREAKS) == {rule.name for rule in rules(NOW)}


@pytest.mark.parametrize("name", BREAKS)
def test_a_rule_fails_on_what_breaks_it(name: str, tmp_path: Path) -> None:
    world = sound()
    BREAKS[name](world)
    record = verdicts(written(world, tmp_path))[name]
    assert record["verdict"] == "failed"
    assert record["failed"] >= 1
    assert record["examples"] or name.endswith("not_empty")


def test_a_rule_counts_its_rows_and_shows_the_first(tmp_path: Path) -> None:
    world = sound()
    put("items", "year", 2115, 1700)(world)
    put("events", "user_id", "u8", "u9")(world)
    found = verdicts(written(world, tmp_path))
    year = found["items.year_plausible"]
    assert (year["failed"], year["rows"], year["share"]) == (2, 6, 2 / 6)
    assert year["examples"][0] == {"row": 4, "item_id": "tt0000004", "title": "Film 4", "year": 2115}  # of the second part, numbered through the table
    assert found["items.year_possible"]["failed"] == 1
    assert found["events.user_known"]["examples"] == [{"row": 10, "user_id": "u8"}, {"row": 11, "user_id": "u9"}]


def test_batches_say_what_the_whole_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = sound()
    for name in ("items.title_clean", "events.value_finite", "credits.once", "items.year_possible"):
        BREAKS[name](world)
    whole = verdicts(written(world, tmp_path))
    monkeypatch.setattr(quality_check, "BATCH", 1)
    assert verdicts(tmp_path) == whole


def test_a_table_with_other_columns_is_not_judged_further(tmp_path: Path) -> None:
    world = sound()
    BREAKS["items.columns"](world)
    found = verdicts(written(world, tmp_path))
    assert "year" in found["items.columns"]["examples"][0]["wrong"]
    assert found["items.year_possible"]["verdict"] == found["events.item_known"]["verdict"] == "not run"
    assert found["events.user_known"]["verdict"] == "passed"
    for part in (tmp_path / "users").iterdir():
        part.unlink()
    assert verdicts(tmp_path)["users.columns"]["examples"] == [{"part": "users/", "wrong": "there is no Parquet file"}]


def test_keys_are_found_as_a_plain_loop_finds_them(tmp_path: Path) -> None:
    """Unique, Refers and Ascending against Python's own sets, on random keys with nulls in three parts."""
    import random

    draw = random.Random(5)
    left = [{"user_id": draw.choice([None, *(f"u{n}" for n in range(300))]), "item_index": draw.randrange(40)} for _ in range(400)]
    right = [{"user_id": f"u{n}"} for n in range(0, 300, 2)]
    for name, rows in (("events", left), ("users", right)):
        (tmp_path / name).mkdir()
        for part in range(3):
            pl.DataFrame(rows[part::3], schema_overrides={"user_id": pl.String}).write_parquet(tmp_path / name / f"part-{part}.parquet")
    left = [row for part in range(3) for row in left[part::3]]  # as the parts hold them
    tables = Tables(tmp_path, {})
    seen: set[tuple[Any, ...]] = set()
    doubles = 0
    for row in left:
        key = (row["user_id"], row["item_index"])
        doubles += row["user_id"] is not None and key in seen
        seen.add(key)
    assert Unique(("user_id", "item_index")).ask(tables, "events").failed == doubles > 0
    known = {row["user_id"] for row in right}
    assert Refers(("user_id",), "users").ask(tables, "events").failed == sum(row["user_id"] not in known for row in left if row["user_id"] is not None)
    assert Ascending("item_index").ask(tables, "events").failed == sum(b["item_index"] <= a["item_index"] for a, b in pairwise(left))


def test_a_critical_rule_stops_the_run_and_leaves_its_page(tmp_path: Path) -> None:
    world = sound()
    put("events", "item_index", 2, 3)(world)
    etl, out, work = written(world, tmp_path / "etl"), tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    with pytest.raises(UGTError) as stopped:
        run(etl, QualityConfig(), out, work)
    text = str(stopped.value)
    assert "CRITICAL rule events.item_known failed" in text
    assert "2 of 12 rows of events break it" in text
    assert "row 10, item_index 2, item_id tt0000004" in text
    assert f"All of it is on {work / PAGE}" in text
    assert "quality.allowed: {events.item_known: 0.167}" in text
    assert "events.item_known" in (work / PAGE).read_text()
    assert list(out.iterdir()) == []
    figures = run(etl, QualityConfig(allowed={"events.item_known": 0.167}), out, work)  # the way out that the message names
    assert figures["by_severity"]["CRITICAL"]["failed"] == 0


def test_a_rule_below_critical_is_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    world = sound()
    put("items", "rating", 0.5)(world)
    figures = run(written(world, tmp_path), QualityConfig(), tmp_path, tmp_path)
    assert figures["by_severity"]["ERROR"] == {"passed": 15, "failed": 1}
    assert figures["rules"] == f"{len(BREAKS) - 1} passed · 1 failed"


@pytest.mark.parametrize(
    ("allowed", "message"), [({"items.yeer": 0.1}, "items.yeer, which is no rule"), ({"items.columns": 1.0}, "nothing can read a table without its columns")]
)
def test_a_share_for_what_is_no_rule_is_refused(allowed: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(UGTError, match=message):
        verdicts(written(sound(), tmp_path), allowed=allowed)


def test_a_folder_that_is_no_run_of_the_etl_is_named(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match=f"{tmp_path} is not the folder of a finished ETL run"):
        tables_of(tmp_path)
