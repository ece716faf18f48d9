"""Titles to items, credits, episodes and people: IMDb's files narrowed where they are read, joined by Ray Data's shuffle, written part by part.

Choices: a first pass over title.basics says which titles are wanted, in which order; a part is a range of that order, so its items are written with their index
as soon as it is joined, and no task and no driver ever holds a whole table. MovieLens' list of movies is small and is held by the driver.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import ray

from data import distribute
from data.distribute import LOOSE, PARQUET, Piece, parquet, split
from data.quality import BAD, Tally, checked
from data.sources import imdb, movielens, plots
from data.sources.imdb import TABLES, Known
from data.sources.rows import SourceFile
from ugt.artifacts import CREDITS, EPISODES, ITEMS, PEOPLE, write_table

PART_TITLES = 32_768  # of a part; fixed, so that the files do not depend on the machine
PART_PEOPLE = 131_072
NO_TITLES = Known(np.empty(0, np.int32), np.empty(0, np.int32))


def of_imdb(
    files: dict[str, SourceFile], title_types: tuple[str, ...], out_dir: Path, tally: Tally, bad: list[pl.DataFrame], described: pl.DataFrame | None = None
) -> tuple[int, int, Known]:
    """Write `items/`, `credits/` and `episodes/` of IMDb's titles of some types; (items, credits, the people with credits).

    described: plot texts and metadata (`data.sources.plots`) for what the titles lack.

    Raises UGTError if a file can't be read to its end.
    """
    first = distribute.narrowed([files["title.basics"]], basics_kernel, title_types=title_types).materialize()
    found = distribute.gather(distribute.loose(first), out_dir)
    settle(found, tally, bad)
    known = Known.of(np.concatenate([f["imdb"].to_numpy() for f in found.get("ids", [])] or [NO_TITLES.number_M]))
    if not len(known):
        return 0, 0, NO_TITLES
    reference = ray.put(known)
    rows = first.map_batches(_placed, fn_args=(reference,), batch_size=None, batch_format="pyarrow")
    others = [f for name, f in files.items() if name != "title.basics"]
    if others:
        rows = rows.union(distribute.narrowed(others, title_kernel, known=reference))
    joined = distribute.joined(rows, -(-len(known) // PART_TITLES), imdb_kernel, described=None if described is None else ray.put(described))
    found = distribute.gather(joined, out_dir)
    settle(found, tally, bad)
    counts = pl.concat(found["counts"]).sum().row(0, named=True)
    return counts["items"], counts["credits"], Known.of(np.concatenate([f["person"].to_numpy() for f in found.get("persons", [])] or [NO_TITLES.number_M]))


def of_movielens(
    files: dict[str, SourceFile], others: dict[str, SourceFile], tally: Tally, bad: list[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """ITEM rows with `item_index`, CREDIT rows and how many IMDb covers, of MovieLens' movies with what IMDb's files (`others`) know of them.

    Raises UGTError if a file can't be read to its end.
    """
    part = movielens.catalogue(files)
    tally.merge(part.tally.counts)
    bad.append(part.bad)
    base = part.items
    known = Known.of(base["imdb"].drop_nulls().to_numpy())
    slots = pl.Series("slot", known.slots(base["imdb"].fill_null(-1)))
    unlinked = len(known) + pl.int_range(pl.len(), dtype=pl.Int32)
    base = base.with_columns(slots).with_columns(slot=pl.when(pl.col("slot") < 0).then(unlinked).otherwise("slot").cast(pl.Int32))
    rows = ray.data.from_arrow(distribute.packed(split(base, "base", PART_TITLES)))
    if others:
        rows = rows.union(distribute.narrowed(list(others.values()), title_kernel, known=ray.put(known)))
    found = distribute.gather(distribute.joined(rows, max(1, -(-base.height // PART_TITLES)), movielens_kernel))
    settle(found, tally, bad)
    items = pl.concat([pl.DataFrame(schema=imdb.ITEM), *found.get("items", [])]).sort("item_id").with_row_index("item_index")
    items = items.with_columns(pl.col("item_index").cast(pl.Int32))
    credits = pl.concat([pl.DataFrame(schema=imdb.CREDIT), *found.get("credits", [])])
    credits = credits.join(items.select("item_id", "item_index"), on="item_id").sort("item_index", "role", "ordering", "person_id")
    return items, credits, pl.concat([pl.DataFrame(schema={"covered": pl.Int64}), *found.get("counts", [])])


def write_parts(items: pa.Table, credits: pa.Table, out_dir: Path) -> None:
    """`items/` and `credits/` of a catalogue at hand, sorted by item_index, cut into the same parts."""
    for part, start in enumerate(range(0, items.num_rows, PART_TITLES)):
        low, high = np.searchsorted(credits["item_index"].to_numpy(), [start, start + PART_TITLES])
        write_table(items.slice(start, PART_TITLES), out_dir / "items", part)
        write_table(credits.slice(low, high - low), out_dir / "credits", part)


def write_people(names: SourceFile | None, wanted: Known, out_dir: Path, tally: Tally, bad: list[pl.DataFrame]) -> int:
    """Write `people/`, those of name.basics that are wanted, by id; how many."""
    if names is None or not len(wanted):
        write_table(PEOPLE.empty_table(), out_dir / "people")
        return 0
    rows = distribute.narrowed([names], people_kernel, known=ray.put(wanted))
    found = distribute.gather(distribute.joined(rows, -(-len(wanted) // PART_PEOPLE), person_kernel), out_dir)
    settle(found, tally, bad)
    if "counts" not in found:
        write_table(PEOPLE.empty_table(), out_dir / "people")
        return 0
    return int(pl.concat(found["counts"])["people"].sum())


def settle(found: dict[str, list[pl.DataFrame]], tally: Tally, bad: list[pl.DataFrame]) -> None:
    """Counts and bad rows to where they are kept."""
    for counts in found.pop("tally", []):
        for text in counts["json"]:
            tally.merge(json.loads(text))
    bad += found.pop("bad", [])


def bookkeeping(tally: Tally, bad: pl.DataFrame | None = None) -> Iterator[Piece]:
    """What `settle` takes: the counts of a kernel, and its bad rows if it may have any."""
    if bad is not None:
        yield LOOSE, "bad", bad.select(pl.col(n).cast(k) for n, k in BAD.items())
    yield LOOSE, "tally", pl.DataFrame({"json": [json.dumps(tally.counts)]})


# --- kernels: run in Ray's workers and, in tests, without Ray


def basics_kernel(name: str, good: pl.DataFrame, unread: pl.DataFrame, title_types: tuple[str, ...]) -> Iterator[Piece]:
    """The titles of some types (`facts`) and their numbers (`ids`)."""
    sound, worse = checked(good, name, TABLES[name])
    kept = imdb.facts(sound.filter(pl.col("titleType").is_in(title_types)))
    yield LOOSE, "ids", kept.select("imdb")
    yield 0, "facts", kept
    yield from _account(name, good, sound, kept, unread, worse)


def title_kernel(name: str, good: pl.DataFrame, unread: pl.DataFrame, known: Known) -> Iterator[Piece]:
    """The rows of one table that belong to wanted titles, cut into parts."""
    sound, worse = checked(good, name, TABLES[name])
    kept = imdb.narrow(name, sound, known)
    yield from split(kept, name, PART_TITLES)
    yield from _account(name, good, sound, kept, unread, worse)


def people_kernel(name: str, good: pl.DataFrame, unread: pl.DataFrame, known: Known) -> Iterator[Piece]:
    sound, worse = checked(good, name, TABLES[name])
    kept = sound.with_columns(slot=pl.Series(known.slots(sound.select(n=imdb.number("nconst"))["n"]))).filter(pl.col("slot") >= 0)
    yield from split(kept, name, PART_PEOPLE)
    yield from _account(name, good, sound, kept, unread, worse)


def imdb_kernel(part: int, tables: dict[str, pl.DataFrame], described: pl.DataFrame | None = None) -> Iterator[Piece]:
    """Items, credits and episodes of a part as Parquet; a slot is the index of an item."""
    tally = Tally()
    titles, credits, episodes = imdb.join({name: imdb.first_of_each(name, rows, tally) for name, rows in tables.items()})
    of_item = titles.select("slot", item_id=imdb.identity("tt", "imdb"))
    items = titles.with_columns(item_index="slot", item_id=of_item["item_id"], imdb_id=of_item["item_id"], description=pl.lit(None, pl.String))
    if described is not None:
        items = plots.describe(items, described)
    credits = credits.join(of_item, on="slot", maintain_order="left")
    yield part, "items" + PARQUET, parquet(items, ITEMS)
    yield part, "credits" + PARQUET, parquet(credit_rows(credits).with_columns(item_index=credits["slot"]), CREDITS)
    if episodes.height:
        rows = episodes.join(of_item, on="slot").sort("slot")
        rows = rows.select("item_id", "season", "episode", parent_id=imdb.identity("tt", "parent"))
        yield part, "episodes" + PARQUET, parquet(rows, EPISODES)
    yield LOOSE, "persons", credits.select(pl.col("person").unique())
    yield LOOSE, "counts", pl.DataFrame({"items": [items.height], "credits": [credits.height]})
    yield from bookkeeping(tally)


def movielens_kernel(part: int, tables: dict[str, pl.DataFrame]) -> Iterator[Piece]:
    """Items and credits of a part of the movies; they get their index when all are there."""
    tally = Tally()
    base = tables.pop("base")
    titles, credits, _ = imdb.join({name: imdb.first_of_each(name, rows, tally) for name, rows in tables.items()})
    yield part, "items", movielens.items(base, titles)
    yield part, "credits", credit_rows(credits.join(base.select("slot", "item_id"), on="slot"))
    covered = base.join(titles.filter(pl.col("original_title").is_not_null()), on="slot", how="semi").height
    yield LOOSE, "counts", pl.DataFrame({"covered": [covered]})
    yield from bookkeeping(tally)


def person_kernel(part: int, tables: dict[str, pl.DataFrame]) -> Iterator[Piece]:
    tally = Tally()
    rows = imdb.people(imdb.first_of_each("name.basics", tables["name.basics"], tally))
    yield part, "people" + PARQUET, parquet(rows, PEOPLE)
    yield LOOSE, "counts", pl.DataFrame({"people": [rows.height]})
    yield from bookkeeping(tally)


def _placed(batch: pa.Table, known: ray.ObjectRef) -> pa.Table:
    """The titles of `basics_kernel` cut into parts."""
    slots = ray.get(known)
    pieces: list[Piece] = []
    for name, data in zip(batch["name"].to_pylist(), batch["data"], strict=True):
        if name == "facts":
            rows = distribute.unpacked(data)
            pieces += split(rows.with_columns(slot=pl.Series(slots.slots(rows["imdb"]))), "title.basics", PART_TITLES)
    return distribute.packed(pieces)


def credit_rows(credits: pl.DataFrame) -> pl.DataFrame:
    """CREDIT rows of credits with `item_id`, person and role as numbers."""
    role = pl.col("role").replace_strict(dict(enumerate(imdb.ROLES)), return_dtype=pl.String)
    return credits.select("item_id", person_id=imdb.identity("nm", "person"), role=role, ordering="ordering")


def _account(name: str, good: pl.DataFrame, sound: pl.DataFrame, kept: pl.DataFrame, unread: pl.DataFrame, worse: pl.DataFrame) -> Iterator[Piece]:
    """Counts and bad rows of a chunk; which rows are out and which repeat a key is counted where the keys meet."""
    tally = Tally()
    quarantined = unread.height + worse.height
    tally.add(name, **{"in": good.height + unread.height, "quarantined": quarantined, "filtered": sound.height - kept.height})
    yield from bookkeeping(tally, pl.concat([unread, worse]))
