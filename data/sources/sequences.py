"""Sequence files: one line per user, `user item item ...`, oldest first; optionally a text per item.

Accepted names in the folder: `sequences.txt` or `sequences.tsv`, else the only other `.txt` or `.tsv`; texts in `items.tsv` or `items.txt`, each line
`item<TAB>text`, no header. All may be gzipped (`.gz`). The catalogue is every item that occurs in a sequence or has a text; an item
without a text is called after its id. There are no times: the place in the line is the order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from data.quality import BAD, Column, Tally, reject, typed
from data.sources.imdb import ITEM, Part, take
from data.sources.rows import SourceFile
from ugt.schema import UGTError

INTERACTIONS = (Column("user", required=True), Column("item", required=True), Column("position", "int", required=True))
TEXTS = (Column("item", required=True), Column("text", required=True, longest=100_000))
TITLE_LIMIT = 200
EVENT: dict[str, Any] = {
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "item_index": pl.Int32,
    "action": pl.String,
    "value": pl.Float32,
    "timestamp": pl.Int64,
    "order": pl.Int64,
}


def sequence_file(path: Path) -> SourceFile:
    return SourceFile("sequences", str(path), tuple(c.name for c in INTERACTIONS), "user", "sequence", header=False)


def files(folder: Path) -> dict[str, SourceFile]:
    """sequences and, where there is one, texts. Raises UGTError saying which names are looked for."""
    if not folder.is_dir():
        raise UGTError(f"there is no folder {folder}. Give the folder with sequences.txt (--data-dir).")
    endings = (".txt", ".txt.gz", ".tsv", ".tsv.gz")
    present = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(endings))
    texts = next((p for p in present if p.name.split(".")[0] == "items"), None)
    named = [p for p in present if p.name.split(".")[0] == "sequences"] or [p for p in present if p != texts]
    if len(named) != 1:
        names = ", ".join(p.name for p in named) or "none"
        raise UGTError(f"{folder} must hold one file of `user item item ...` lines (sequences.txt or .txt.gz); found {names}. Name it sequences.txt.")
    found = {"sequences": sequence_file(named[0])}
    if texts is not None:
        found["texts"] = SourceFile("texts", str(texts), ("item", "text"), "item", "tsv", header=False)
    return found


def tokens(raw: pl.DataFrame) -> pl.DataFrame:
    """The distinct items of a block of sequences, one column `item_id`."""
    return raw.filter((pl.col("table") == "sequences") & pl.col("reason").is_null()).select(item_id="c1").unique().sort("item_id")


def titles(raw: pl.DataFrame, known: pl.DataFrame, item_type: str = "product") -> Part:
    """A partition of texts as items. known: the items of the sequences that fall into this partition (`item_id`)."""
    tally, bad = Tally(), [pl.DataFrame(schema=BAD)]
    rows = take(raw, "texts", TEXTS, ["item"], tally, bad)
    tally.add("texts", out=rows.height)
    every = pl.concat([known.select("item_id"), rows.select(item_id="item")]).unique()
    items = every.join(rows, left_on="item_id", right_on="item", how="left").select(
        "item_id",
        item_type=pl.lit(item_type),
        title=pl.coalesce(pl.col("text").str.strip_chars().str.slice(0, TITLE_LIMIT), pl.lit("item ") + pl.col("item_id")),
        description=pl.when(pl.col("text").str.len_chars() > TITLE_LIMIT).then(pl.col("text")),
    )
    return Part(complete(items), pl.concat(bad), tally)


def complete(items: pl.DataFrame) -> pl.DataFrame:
    """All columns of an item; the ones a source doesn't have are null or empty."""
    missing = [c for c in ITEM if c not in items.columns]
    items = items.with_columns(pl.lit([] if c in ("genres", "countries") else None, ITEM[c]).alias(c) for c in missing)
    return items.select(pl.col(name).cast(kind) for name, kind in ITEM.items())


def events(raw: pl.DataFrame, item_ids: pl.DataFrame, action: str, dates: pl.DataFrame | None = None) -> Part:
    """EVENTS rows of a partition of users; `items` of the Part holds them. dates: (user, nth, date), nth = place among the user's events.

    An event without a date takes the one before it (the next one at the start), so that its place in the line is kept.
    """
    tally = Tally()
    rows, worse = typed(raw, "sequences", INTERACTIONS)
    tally.add("sequences", **{"in": rows.height + worse.height, "quarantined": worse.height})
    known = rows.join(item_ids, left_on="item", right_on="item_id", how="left").with_columns(lost=pl.col("item_index").is_null())
    kept, unknown = reject(known, "sequences", pl.col("lost"), pl.concat_str([pl.lit("unknown item "), pl.col("item")]), INTERACTIONS)
    tally.add("sequences", out=kept.height, quarantined=unknown.height)
    kept = kept.sort("row", "position").with_columns(nth=pl.int_range(pl.len()).over("user"))
    if dates is None:
        kept = kept.with_columns(date=pl.lit(0, pl.Int64))
    else:
        kept = kept.join(dates, on=["user", "nth"], how="left", maintain_order="left")
        kept = kept.with_columns(pl.col("date").forward_fill().backward_fill().over("user").fill_null(0))
    found = kept.select(
        event_id=pl.concat_str([pl.lit("sequence-"), pl.col("row"), pl.lit("-"), pl.col("position")]),
        user_id="user",
        item_id="item",
        item_index="item_index",
        action=pl.lit(action),
        value=pl.lit(None, pl.Float32),
        timestamp="date",
        order="nth",
    )
    return Part(found.select(pl.col(n).cast(k) for n, k in EVENT.items()), pl.concat([worse, unknown]), tally)
