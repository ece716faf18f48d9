"""The catalogue of IMDb's files and its features in one process of polars, whole tables in memory: what `ugt bench etl` compares with.

Choices: the same files, rules and output as the pipeline. polars' CSV reader alone would take a row with a missing column for a good one, so lines are
read as text, judged, and then split.
Run as `python -m ray_app.bench.etl_polars FOLDER OUT`, in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

from data.quality import Tally, checked
from data.sources import imdb
from data.sources.imdb import TABLES, Known
from data.sources.rows import CONTROL, SourceFile, file_columns
from data.titles import credit_rows
from ugt.feature_blocks import count_block, encode_block, vocabulary_of
from ugt.features import FeatureConfig, save_features
from ugt.settings import EtlConfig


def read(source: SourceFile) -> pl.DataFrame:
    """The sound rows of a file: `row` and the typed columns."""
    names = file_columns(source)
    line = pl.scan_csv(source.path, has_header=False, skip_lines=1, separator="\x1e", quote_char=None, schema={"line": pl.String}, encoding="utf8-lossy")
    text = pl.col("line")
    whole = (text.str.count_matches("\t", literal=True) == len(names) - 1) & ~text.str.contains(CONTROL) & ~text.str.contains("\ufffd", literal=True)
    cells = line.with_row_index("row", 1).filter(whole).select("row", text.str.split_exact("\t", len(names) - 1).struct.rename_fields(names)).unnest("line")
    rows = cells.select("row", *(pl.when(pl.col(c) != "\\N").then(pl.col(c)).alias(c) for c in source.columns))
    return checked(rows.collect(engine="streaming"), source.table, TABLES[source.table])[0]


def run(folder: Path, out_dir: Path) -> dict[str, Any]:
    """Write items, credits, people, vocabulary and features into `out_dir`; rows and seconds of each step."""
    config, seconds = EtlConfig(), {}
    files = imdb.files(folder)
    out_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def took(step: str) -> None:
        nonlocal start
        seconds[step], start = round(time.perf_counter() - start, 3), time.perf_counter()

    kept = read(files["title.basics"]).filter(pl.col("titleType").is_in(config.title_types))
    known = Known.of(kept.select(n=imdb.number("tconst"))["n"].to_numpy())
    tables = {"title.basics": imdb.first_of_each("title.basics", imdb.narrow("title.basics", kept, known), Tally())}
    took("title.basics")
    for name in ("title.ratings", "title.crew", "title.principals", "title.akas"):
        if name in files:
            tables[name] = imdb.first_of_each(name, imdb.narrow(name, read(files[name]), known), Tally())
            took(name)
    titles, credits, _ = imdb.join(tables)
    of_item = titles.select("slot", item_id=imdb.identity("tt", "imdb"))
    items = titles.select(pl.col("slot").alias("item_index"), pl.all().exclude("slot", "imdb")).with_columns(item_id=of_item["item_id"])
    credits = credits.join(of_item, on="slot", maintain_order="left")
    rows = credit_rows(credits).with_columns(item_index=credits["slot"])
    items.write_parquet(out_dir / "items.parquet", compression="zstd")
    rows.write_parquet(out_dir / "credits.parquet", compression="zstd")
    took("join")
    people = 0
    if "name.basics" in files:
        names = read(files["name.basics"]).unique("nconst", keep="first", maintain_order=True)
        names = names.join(rows.select(pl.col("person_id").unique()), left_on="nconst", right_on="person_id", how="semi").sort("nconst")
        imdb.people(names).write_parquet(out_dir / "people.parquet", compression="zstd")
        people = names.height
        took("name.basics")
    vocabulary = vocabulary_of(count_block(items, rows), FeatureConfig())
    save_features(encode_block(items, rows, vocabulary), out_dir)
    vocabulary.save(out_dir)
    took("features")
    return {"items": items.height, "credits": rows.height, "people": people, "seconds": round(sum(seconds.values()), 3), "steps": seconds}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]))))
