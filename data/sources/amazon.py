"""Amazon reviews (2014, 5-core) as the field passes them on: sequences, and what is known of the items.

A folder holds `<set>.txt.gz` (`user item item ...`) and, each optional: `datamaps.json.gz` (item number -> ASIN), `asin_rank.tsv.gz` and
`item_info.json.gz` (ASIN -> rank -> title and categories), `idgenrec.item_text_ids.txt.gz` (ASIN -> words), `timestamps.tsv.gz` (a date per
interaction, in the order of the sequences). Toys_and_Games numbers its items differently in `<set>.txt.gz` than in datamaps: there
`p5.sequential.txt.gz` is the file that belongs to them, and is taken wherever it exists. Item and user ids are the numbers of the lines.
"""

from __future__ import annotations

import gzip
import html
import json
from pathlib import Path
from typing import Any

import polars as pl

from data.quality import Column, typed
from data.sources.imdb import Part
from data.sources.rows import BROKEN, SourceFile
from data.sources.sequences import complete, events, sequence_file
from ugt.schema import UGTError

DATES = (Column("user", required=True), Column("item", required=True), Column("timestamp", "int", low=0))
OTHER = ("p5.", "idgenrec.")
ABOUT: dict[str, Any] = {"item_id": pl.String, "title": pl.String, "genres": pl.List(pl.String)}
NOTHING = pl.DataFrame(schema=ABOUT)  # of items nothing is known of


def files(folder: Path) -> dict[str, SourceFile]:
    """sequences and, where there are any, timestamps. Raises UGTError naming what is missing."""
    if not folder.is_dir():
        raise UGTError(f"there is no folder {folder}. Give the folder of one Amazon set, with <set>.txt.gz (--data-dir).")
    lines = sorted(p for p in folder.iterdir() if p.name.endswith((".txt", ".txt.gz")) and not p.name.startswith(OTHER))
    p5 = next((p for p in (folder / "p5.sequential.txt.gz", folder / "p5.sequential.txt") if p.is_file()), None)
    if p5 is None and (folder / "s3rec_to_p5_items.tsv.gz").is_file():
        raise UGTError(
            f"{folder} numbers its items in two ways (s3rec_to_p5_items.tsv.gz) and lacks p5.sequential.txt.gz, the one of datamaps.json.gz. Put it there."
        )
    if p5 is None and len(lines) != 1:
        raise UGTError(
            f"{folder} must hold one <set>.txt.gz of `user item item ...` lines; found {', '.join(p.name for p in lines) or 'none'}. Check --data-dir."
        )
    found = {"sequences": sequence_file(p5 or lines[0])}
    if (folder / "timestamps.tsv.gz").is_file():
        found["timestamps"] = SourceFile("timestamps", str(folder / "timestamps.tsv.gz"), tuple(c.name for c in DATES), "user", "tsv")
    return found


def side_files(folder: Path) -> list[Path]:
    """The item files that `texts` reads, as far as they are there."""
    names = ("datamaps.json.gz", "asin_rank.tsv.gz", "item_info.json.gz", "idgenrec.item_text_ids.txt.gz")
    return [folder / name for name in names if (folder / name).is_file()]


def texts(folder: Path) -> pl.DataFrame:
    """(item_id, title, genres) of every item something is known of. Titles by ASIN rank, else IDGenRec's words. Raises UGTError on a broken file."""
    asin_of = _json(folder / "datamaps.json.gz").get("id2item", {})
    info = _json(folder / "item_info.json.gz")
    rank_of = dict(line.split("\t")[:2] for line in _lines(folder / "asin_rank.tsv.gz")[1:] if "\t" in line)
    words_of = dict(line.split(" ", 1) for line in _lines(folder / "idgenrec.item_text_ids.txt.gz") if " " in line)
    rows = []
    for item, asin in asin_of.items():
        known: dict[str, Any] = info.get(rank_of.get(asin, ""), {})
        title = html.unescape(known.get("title") or "").strip() or words_of.get(asin, "").strip()
        # the first level names the whole set ("Beauty") and tells nothing apart
        categories = sorted({c for path in known.get("categories") or [] for c in path[1:]})
        rows.append({"item_id": item, "title": title or f"item {item} ({asin})", "genres": categories})
    return pl.DataFrame(rows, schema=ABOUT)


def titles(known: pl.DataFrame, about: pl.DataFrame) -> pl.DataFrame:
    """The items of the sequences (`item_id`) with what `texts` knows of them."""
    return complete(
        known.join(about, on="item_id", how="left").with_columns(
            item_type=pl.lit("product"), title=pl.coalesce("title", pl.lit("item ") + pl.col("item_id")), genres=pl.col("genres").fill_null([])
        )
    )


def dated_events(raw: pl.DataFrame, item_ids: pl.DataFrame) -> Part:
    """Events of a partition of users; the nth row of a user in timestamps is the date of the nth item of the line, if it names the same item."""
    dates, worse = typed(raw, "timestamps", DATES)
    dates = dates.sort("row").with_columns(nth=pl.int_range(pl.len()).over("user"))
    lines = raw.filter((pl.col("table") == "sequences") & pl.col("reason").is_null())
    lines = lines.sort(pl.col("row"), pl.col("c2").cast(pl.Int64)).select(user="c0", item="c1").with_columns(nth=pl.int_range(pl.len()).over("user"))
    usable = dates.filter(pl.col("timestamp").is_not_null()).join(lines, on=["user", "nth", "item"], how="semi")
    part = events(raw, item_ids, "purchase", usable.select("user", "nth", date="timestamp"))
    part.bad = pl.concat([part.bad, worse])
    if dates.height + worse.height:
        part.tally.add(
            "timestamps", **{"in": dates.height + worse.height, "out": usable.height, "filtered": dates.height - usable.height, "quarantined": worse.height}
        )
    return part


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as f:
            return f.read().splitlines()
    except (*BROKEN, UnicodeDecodeError) as error:
        raise UGTError(f"{path} can't be read ({error}): a cut-off download? Fetch it again.") from error


def _json(path: Path) -> dict[str, Any]:
    text = "\n".join(_lines(path))
    try:
        return json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise UGTError(f"{path} is not valid JSON ({error}). Fetch it again.") from error
