"""Profile, drift and page of an ETL run: figures as numpy, scipy and plain Python give them; the page says them and needs nothing else."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from data.quality_drift import FLOOR, _categories, _numeric, drift, ks, psi, verdict
from data.quality_profile import BINS, KINDS, histogram, profile
from data.quality_queries import CANONICAL, SCHEMAS
from data.quality_report import PAGE, build, run, tables_of
from ugt.artifacts import Manifest, write_table, write_text
from ugt.schema import UGTError
from ugt.settings import QualityConfig


def made(folder: Path, seed: int = 0, year: float = 1990.0, items: int = 900, genres: tuple[str, ...] = ("Drama", "War", "Noir"), key: str = "k0") -> Path:
    """An ETL run of random items and events; `year` is the mean year of the catalogue."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    ids = [f"tt{i:07d}" for i in range(items)]
    chosen = [sorted({genres[g] for g in rng.integers(0, len(genres), rng.integers(0, 3))}) for _ in range(items)]
    rows = {
        "items": [
            {"item_index": i, "item_id": ids[i], "item_type": "movie", "title": f"Film {'x' * (i % 7)} <{i}>", "original_title": None, "imdb_id": ids[i]}
            | {"year": int(rng.normal(year, 8)) if i % 10 else None, "runtime_minutes": 90 + i % 60, "genres": chosen[i], "countries": []}
            | {"rating": 1 + float(rng.integers(0, 90)) / 10, "votes": int(rng.lognormal(4, 2)), "description": None}
            for i in range(items)
        ],
        "people": [],
        "credits": [],
        "users": [{"user_id": f"u{u}", "gender": "FM"[u % 2], "age": None, "occupation": None} for u in range(60)],
        "events": [
            {"event_id": f"e{n}", "user_id": f"u{n % 60}", "item_id": ids[n % items], "item_index": n % items, "action": "rate"}
            | {"value": float(rng.integers(1, 11)) / 2, "timestamp": 0 if n < 40 else 1_500_000_000 + 1000 * n, "order": n}
            for n in range(1800)
        ],
        "quarantine": [
            {"table": "ratings", "file": "ratings.csv", "row": n, "reason": f"rating is not a number: <b>{n}", "raw": f"1\t{n}\t<script>"} for n in range(5)
        ],
    }
    for name, table in rows.items():
        write_table(pa.Table.from_pylist(table, schema=SCHEMAS[name]), folder / name)
    n = {"rows_in": 1900, "rows_out": 1800, "rows_filtered": 90, "rows_duplicate": 5, "rows_quarantined": 5}
    figures = {"source": "sample", "tables": {"ratings": n}} | {name: len(rows[name]) for name in CANONICAL}
    manifest = Manifest(step="etl", key=key, version=1, inputs={}, settings={}, figures=figures, seconds=1, files={})
    write_text(folder / "manifest.json", manifest.model_dump_json())
    return folder


class Page(HTMLParser):
    """Every tag is closed where it was opened; remembers what a browser would fetch, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.words += " " if tag in ("td", "th", "p", "h3") else ""

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


# --- profile


def test_every_column_of_the_canonical_tables_has_a_kind() -> None:
    assert {table: list(kinds) for table, kinds in KINDS.items()} == {table: SCHEMAS[table].names for table in CANONICAL}


def test_a_profile_is_what_a_loop_over_the_rows_finds(tmp_path: Path) -> None:
    tables, _ = tables_of(made(tmp_path))
    found = profile(tables)
    items = tables.scan("items").collect().to_dicts()
    years = sorted(row["year"] for row in items if row["year"] is not None)
    year = found["items"]["year"]
    assert (year["rows"], year["nulls"], year["distinct"], year["estimated"]) == (900, 90, len(set(years)), False)
    assert (year["numbers"]["min"], year["numbers"]["max"]) == (years[0], years[-1])
    assert year["numbers"]["mean"] == pytest.approx(sum(years) / len(years))
    assert year["numbers"]["quantiles"]["50%"] == years[(len(years) - 1) // 2]
    assert sum(year["numbers"]["histogram"]["counts"]) == len(years)
    lengths = [len(row["title"]) for row in items]
    assert (found["items"]["title"]["lengths"]["min"], found["items"]["title"]["lengths"]["max"]) == (min(lengths), max(lengths))
    genres = [g for row in items for g in row["genres"]]
    top = {row["value"]: row["rows"] for row in found["items"]["genres"]["top"]}
    assert top == {g: genres.count(g) for g in ("Drama", "War", "Noir")}
    assert list(top.values()) == sorted(top.values(), reverse=True)
    assert found["items"]["genres"]["lengths"]["min"] == 0
    assert found["items"]["description"] | {"nulls": 900} == found["items"]["description"]
    assert found["events"]["timestamp"]["numbers"]["min"] == 1_500_040_000  # 0 is no time
    assert found["events"]["user_id"]["distinct"] == 60
    assert found["people"]["name"]["rows"] == 0


def test_a_histogram_counts_every_value_and_uses_log_bins_where_numbers_are_skewed() -> None:
    x = np.sort(np.random.default_rng(0).lognormal(3, 3, 5000))
    skewed, even = histogram(x), histogram(np.arange(1000.0))
    assert skewed["log"]
    assert not even["log"]
    assert sum(skewed["counts"]) == 5000
    assert len(skewed["edges"]) == BINS + 1
    assert max(even["counts"]) - min(even["counts"]) <= 10  # the ends hold what lies beyond
    assert histogram(np.full(7, 3.0)) == {"edges": [3.0, 3.0], "counts": [7], "log": False}


# --- drift


def test_psi_is_the_sum_it_is_defined_by() -> None:
    assert psi(np.array([50, 50]), np.array([50, 50])) == 0
    assert psi(np.array([10, 20]), np.array([100, 200])) == pytest.approx(0)
    assert psi(np.array([50, 50]), np.array([80, 20])) == pytest.approx(0.3 * math.log(1.6) + (-0.3) * math.log(0.4))
    assert psi(np.array([100, 0]), np.array([50, 50])) == pytest.approx(-0.5 * math.log(0.5) + (0.5 - FLOOR) * math.log(0.5 / FLOOR))


def test_ks_is_the_greatest_gap_between_the_two_distribution_functions() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.normal(0, 1, 300), rng.normal(0.5, 1, 200)
    at = np.concatenate([old, new])
    gap = max(abs((old <= x).mean() - (new <= x).mean()) for x in at)
    distance, p_value = ks(old, new)
    assert distance == pytest.approx(gap)
    assert p_value == pytest.approx(stats.ks_2samp(old, new, method="asymp").pvalue)


def test_numbers_fall_into_the_deciles_of_the_reference_and_a_bin_of_what_is_missing() -> None:
    import polars as pl

    old, new = pl.Series([float(n) for n in range(100)]), pl.Series([float(n) for n in range(50)] + [None] * 50)
    row = _numeric("x", old, new)
    assert row["bins"][0].startswith("below 9.9")
    assert row["bins"][-1] == "(missing)"
    assert row["reference"] == pytest.approx([0.1] * 10 + [0])
    assert row["current"] == pytest.approx([0.1] * 5 + [0] * 5 + [0.5])
    by_hand = 5 * (FLOOR - 0.1) * math.log(FLOOR / 0.1) + (0.5 - FLOOR) * math.log(0.5 / FLOOR)
    assert row["psi"] == pytest.approx(by_hand)
    assert row["ks"] == pytest.approx(0.5)
    assert row["distance"] == max(row["psi"], row["ks"])


def test_categories_are_compared_value_by_value_new_ones_too() -> None:
    import polars as pl

    row = _categories("role", pl.Series(["a"] * 6 + ["b"] * 4), pl.Series(["a"] * 3 + ["c"] * 6 + [None]))
    assert row["bins"] == ["a", "b", "c", "(missing)"]
    assert row["reference"] == pytest.approx([0.6, 0.4, 0, 0])
    assert row["current"] == pytest.approx([0.3, 0, 0.6, 0.1])


@pytest.mark.parametrize(("distance", "word"), [(0.0, "stable"), (0.0999, "stable"), (0.1, "moderate"), (0.2499, "moderate"), (0.25, "large"), (9.0, "large")])
def test_the_thresholds_are_a_tenth_and_a_quarter(distance: float, word: str) -> None:
    assert verdict(distance) == word


def test_a_catalogue_that_moved_is_found_and_an_equal_one_is_stable(tmp_path: Path) -> None:
    old, same, moved = (
        tables_of(made(tmp_path / name, **change))[0]
        for name, change in (("old", {}), ("same", {"seed": 1}), ("moved", {"seed": 1, "year": 2002.0, "genres": ("Drama", "War", "Manga")}))
    )
    still = drift(old, old)
    assert {row["distance"] for row in still["columns"]} == {0.0}
    calm = {row["column"]: row["verdict"] for row in drift(old, same)["columns"]}
    assert set(calm.values()) == {"stable"}
    found = drift(old, moved)
    verdicts = {row["column"]: row["verdict"] for row in found["columns"]}
    assert {column for column, word in verdicts.items() if word != "stable"} == {"items.year", "items.genres"}
    assert [row["distance"] for row in found["columns"]] == sorted((row["distance"] for row in found["columns"]), reverse=True)
    assert found["tables"]["events"] == {"reference": 1800, "current": 1800}
    assert "events per user" in verdicts
    assert "people.birth_year" not in verdicts  # no rows on either side


# --- the page


def test_the_page_is_one_file_and_says_what_was_found(tmp_path: Path) -> None:
    before, now = made(tmp_path / "before", key="before"), made(tmp_path / "now", seed=1, year=2002.0)
    out = tmp_path / "out"
    out.mkdir()
    figures = run(now, QualityConfig(), out, tmp_path, before)
    assert sorted(path.name for path in out.iterdir()) == [PAGE, "quality.json"]
    page, report = (out / PAGE).read_text(), json.loads((out / "quality.json").read_text())
    parsed = Page(page)
    text = re.sub(r"\s+", " ", parsed.words)
    assert parsed.fetched == []
    assert "<b>4" not in page
    assert "<script" not in page
    for shown in (
        "ratings 1,900 1,800 90 5 5",
        "rating is not a number 5 ratings.csv row 0: rating is not a number: <b>0",
        "1 <script>",
        "Drift against before",
        "items: 900 rows",
        "items.year_plausible",
    ):
        assert shown in text, shown
    worst = report["drift"]["columns"][0]
    assert worst["column"] == "items.year"
    assert figures["worst_drift"]["column"] == "items.year"
    assert figures["drift"] == f"large (items.year {worst['distance']:.2f})"
    assert page.count('aria-label="shares in both runs"') == len(report["drift"]["columns"])
    assert build(report) == page


def test_a_run_without_an_earlier_one_has_no_drift(tmp_path: Path) -> None:
    figures = run(made(tmp_path), QualityConfig(), tmp_path, tmp_path)
    assert figures["worst_drift"] is None
    assert "drift" not in figures
    assert "Drift against" not in (tmp_path / PAGE).read_text()


def test_drift_against_what_is_no_run_of_the_etl_is_refused(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {"step": "text", "key": "k", "version": 1, "inputs": {}, "settings": {}, "figures": {}, "seconds": 1, "files": {}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UGTError, match="is a result of the step text, not of etl"):
        run(made(tmp_path / "now"), QualityConfig(), tmp_path, tmp_path, tmp_path / "other")
