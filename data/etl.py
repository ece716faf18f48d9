"""Sources to canonical tables: items, people, credits, users, events, and the quarantine of rows that could not be read.

Everything about a title meets by its key (`data.titles`), everything about a person and about a user likewise. Output order follows from the
data alone (items by id, events by user, time and place in the file), so a second run writes the same tables. A source file is read as
it is; what leaves its rows on the way is counted per table, and the counts must add up (`figures["tables"]`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import ray

from data import distribute, event_log, titles
from data.distribute import LOOSE, Piece, frame, table
from data.quality import BAD, Tally
from data.sources import amazon, imdb, movielens, plots, sequences
from data.sources.imdb import Known
from data.sources.rows import SourceFile, file_columns
from ugt import holdout
from ugt.artifacts import CREDITS, EVENTS, ITEMS, QUARANTINE, USERS, read_table, write_table
from ugt.erasure import Erased
from ugt.schema import SourceKind, UGTError
from ugt.settings import EtlConfig
from ugt.synthetic import SampleConfig, write_events_for


@dataclass(frozen=True)
class Plan:
    """The files of a source: by catalogue, people and events; `extra` are read as a whole by the driver, `plots` and the event log where they are set."""

    titles: dict[str, SourceFile]
    names: SourceFile | None
    events: dict[str, SourceFile]
    extra: tuple[Path, ...] = ()
    plots: dict[str, Path] = field(default_factory=dict)

    @property
    def all(self) -> list[SourceFile]:
        return [*self.titles.values(), *([self.names] if self.names else []), *self.events.values()]


def plan(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None, config: EtlConfig = EtlConfig()) -> Plan:
    """The files that are there. Raises UGTError naming the folder or file that is missing, and the flag that gives it."""
    if data_dir is None:
        raise UGTError(f"--source {kind} needs the folder that holds its files: --data-dir DIR.")
    data_dir = Path(data_dir).absolute()
    if kind == "imdb":
        found = imdb.files(data_dir)
        chosen = Plan({t: f for t, f in found.items() if t != "name.basics"}, found.get("name.basics"), {})
    elif kind in ("movielens", "sample"):
        own = movielens.files(data_dir, config.links)
        found = imdb.files(Path(imdb_dir).absolute()) if imdb_dir is not None else {}
        of_titles = {t: own[t] for t in ("movies", "links") if t in own} | {t: f for t, f in found.items() if t != "name.basics"}
        chosen = Plan(of_titles, found.get("name.basics"), {t: own[t] for t in ("ratings", "users") if t in own})
    elif kind == "amazon":
        chosen = Plan({}, None, amazon.files(data_dir), tuple(amazon.side_files(data_dir)))
    else:
        own = sequences.files(data_dir)
        chosen = Plan({"texts": own["texts"]} if "texts" in own else {}, None, {"sequences": own["sequences"]})
    if config.plots_dir is None:
        return chosen
    if kind in ("amazon", "sequences"):
        raise UGTError(f"etl.plots_dir describes films of IMDb and MovieLens; --source {kind} has ids of its own. Leave it empty.")
    return replace(chosen, plots=plots.files(Path(config.plots_dir).absolute()))


def check(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None, config: EtlConfig = EtlConfig()) -> None:
    """Raises UGTError naming the folder or file that is missing, or the file that is empty or has other columns. Reads first lines only."""
    for source in plan(kind, data_dir, imdb_dir, config).all:
        file_columns(source)


def checksums(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None, config: EtlConfig = EtlConfig()) -> dict[str, str]:
    """SHA-256 of every source file by its name: the inputs of the step. Raises UGTError for what is missing."""
    chosen = plan(kind, data_dir, imdb_dir, config)
    named = {(s.table, s.path) for s in chosen.all} | {(p.name, str(p)) for p in (*chosen.extra, *chosen.plots.values())}
    if config.event_log is not None:
        named |= {(f"event_log/{day}", str(p)) for day in event_log.days(config.event_log) for p in event_log.sorted_parts(config.event_log, day)}
    digests = {}
    for name, path in sorted(named):
        with open(path, "rb") as f:
            digests[f"{name}:{Path(path).name}"] = hashlib.file_digest(f, "sha256").hexdigest()
    return digests


def run(
    kind: SourceKind,
    data_dir: Path | None,
    imdb_dir: Path | None,
    config: EtlConfig,
    out_dir: Path,
    sample: SampleConfig | None = None,
    home: Path | None = None,
) -> dict[str, Any]:
    """Write the canonical tables into `out_dir` and return the figures. `sample`: size and seed of the events generated for `--source imdb`.

    Rows of users who were erased from `home` are left out and counted as filtered.
    Raises UGTError naming file and way out: missing folder or file, other columns, a file that is cut off, an empty catalogue, no events.
    """
    chosen = plan(kind, data_dir, imdb_dir, config)
    if kind == "imdb" and (config.hold_out or config.event_log):
        raise UGTError("etl.hold_out and etl.event_log need events of people; those of --source imdb are generated. Leave them out, or name another source.")
    tally = Tally()
    bad: list[pl.DataFrame] = []
    if kind == "imdb":
        figures = catalogue(chosen, config, out_dir, tally, bad)
        items, credits = read_table(out_dir / "items", ITEMS), read_table(out_dir / "credits", CREDITS)
        figures |= write_events_for(items, credits, sample or SampleConfig(), out_dir)
    else:
        figures = _with_events(kind, chosen, config, out_dir, tally, bad, Erased.load(home) if home is not None else None)
    names = {f.table: f.name for f in chosen.all} | {name: path.name for name, path in chosen.plots.items()}
    quarantine = pl.concat([pl.DataFrame(schema=BAD), *bad]).sort("table", "row", "reason")
    quarantine = quarantine.with_columns(file=pl.col("table").replace_strict(names, default=None, return_dtype=pl.String))
    write_table(table(quarantine, QUARANTINE), out_dir / "quarantine")
    return {"source": kind, **figures, "tables": tally.figures(), "quarantined": quarantine.height}


def catalogue(chosen: Plan, config: EtlConfig, out_dir: Path, tally: Tally, bad: list[pl.DataFrame]) -> dict[str, Any]:
    """Write items, credits, episodes and people of IMDb's own titles; their numbers. Raises UGTError if no title is left."""
    items, credits, people = titles.of_imdb(chosen.titles, config.title_types, out_dir, tally, bad, _plots(config, tally, bad))
    if not items:
        raise UGTError(_empty(chosen.titles["title.basics"].path, config, bad))
    return {"items": items, "people": titles.write_people(chosen.names, people, out_dir, tally, bad), "credits": credits, "covered_by_imdb": items}


def _with_events(
    kind: SourceKind, chosen: Plan, config: EtlConfig, out_dir: Path, tally: Tally, bad: list[pl.DataFrame], erased: Erased | None
) -> dict[str, Any]:
    """Write the tables of a source that has events of people; their figures."""
    if kind in ("movielens", "sample"):
        movies = {t: f for t, f in chosen.titles.items() if t in ("movies", "links")}
        rows, credit_rows, counts = titles.of_movielens(movies, {t: f for t, f in chosen.titles.items() if t not in movies}, tally, bad)
        covered = int(counts["covered"].sum())
        if (described := _plots(config, tally, bad)) is not None:
            tmdb = movielens.ids(movies["links"]) if "links" in movies else pl.DataFrame(schema=movielens.IDS)
            rows = plots.describe(rows.join(tmdb.select("item_id", "tmdb_id"), on="item_id", how="left", maintain_order="left"), described).drop("tmdb_id")
    else:
        rows, credit_rows, covered = _products(kind, chosen, config, tally, bad), pl.DataFrame(schema=imdb.CREDIT | {"item_index": pl.Int32}), 0
    if not rows.height:
        raise UGTError(_empty(next(iter(chosen.all)).path, config, bad))
    items, credits = table(rows, ITEMS), table(credit_rows, CREDITS)
    wanted = Known.of(credit_rows.select(pl.col("person_id").unique()).select(n=imdb.number("person_id"))["n"].to_numpy())
    figures: dict[str, Any] = {"items": items.num_rows, "people": titles.write_people(chosen.names, wanted, out_dir, tally, bad), "credits": credits.num_rows}
    events, users = _events(kind, chosen, items, config, tally, bad, erased)
    if events.num_rows == 0:
        raise UGTError(f"{', '.join(f.name for f in chosen.events.values())} hold no event of a known item. {_reasons(bad)}")
    if config.hold_out:
        items, credits, events, held_figures = _hold_out(items, credits, events, config, out_dir / holdout.FOLDER)
        figures |= {"items": items.num_rows, "credits": credits.num_rows} | held_figures
    titles.write_parts(items, credits, out_dir)
    write_table(events, out_dir / "events")
    write_table(users, out_dir / "users")
    figures |= {"users": users.num_rows, "events": events.num_rows, "density": round(events.num_rows / (users.num_rows * items.num_rows), 6)}
    return figures | _event_figures(events) | {"covered_by_imdb": covered}


def _empty(place: str, config: EtlConfig, bad: list[pl.DataFrame]) -> str:
    return f"the catalogue of {Path(place).parent} is empty: no readable title is left (types kept: {', '.join(config.title_types)}). {_reasons(bad)}"


def _hold_out(items: pa.Table, credits: pa.Table, events: pa.Table, config: EtlConfig, folder: Path) -> tuple[pa.Table, pa.Table, pa.Table, dict[str, Any]]:
    """What is kept of the tables, and figures; the rest goes to `folder`, where no step of the training looks."""
    parted = holdout.part(items, credits, events, config.hold_out, config.hold_out_seed)
    for name, held in (("items", parted.held_items), ("credits", parted.held_credits), ("events", parted.held_events)):
        write_table(held, folder / name)
    return parted.items, parted.credits, parted.events, {"held_out_items": parted.held_items.num_rows, "held_out_events": parted.held_events.num_rows}


def _products(kind: SourceKind, chosen: Plan, config: EtlConfig, tally: Tally, bad: list[pl.DataFrame]) -> pl.DataFrame:
    """ITEM rows with `item_index` of the items that occur in sequences, with the texts there are."""
    known = _tokens(chosen, config)
    if kind == "amazon":
        rows = amazon.titles(known, amazon.texts(Path(chosen.events["sequences"].path).parent))
    elif chosen.titles:
        raw = distribute.raw_rows(list(chosen.titles.values()), config.blocks)
        found = distribute.gather(distribute.per_partition(raw, text_kernel, config.blocks, known=ray.put(known), partitions=config.blocks))
        titles.settle(found, tally, bad)
        described = pl.concat([pl.DataFrame(schema=imdb.ITEM), *found["items"]])
        # partitions that no text fell into
        rows = pl.concat([described, amazon.titles(known.join(described, on="item_id", how="anti"), amazon.NOTHING)])
    else:
        rows = amazon.titles(known, amazon.NOTHING)
    rows = rows.sort("item_id").unique("item_id", keep="first", maintain_order=True).with_row_index("item_index")
    return rows.with_columns(pl.col("item_index").cast(pl.Int32))


def _tokens(chosen: Plan, config: EtlConfig) -> pl.DataFrame:
    found = distribute.gather(distribute.per_block(distribute.raw_rows([chosen.events["sequences"]], config.blocks), token_kernel))
    return pl.concat([pl.DataFrame(schema={"item_id": pl.String}), *found["items"]]).unique().sort("item_id")


def _plots(config: EtlConfig, tally: Tally, bad: list[pl.DataFrame]) -> pl.DataFrame | None:
    """What the files of `etl.plots_dir` say of films, if it is set."""
    if config.plots_dir is None:
        return None
    found = plots.load(Path(config.plots_dir).absolute())
    tally.merge(found.tally.counts)
    bad.append(found.bad)
    return found.rows


def _events(
    kind: SourceKind, chosen: Plan, items: pa.Table, config: EtlConfig, tally: Tally, bad: list[pl.DataFrame], erased: Erased | None
) -> tuple[pa.Table, pa.Table]:
    known = ray.put(frame(items).select("item_id", "item_index"))
    raw = distribute.raw_rows(list(chosen.events.values()), config.blocks)
    settings = {"kind": kind, "item_ids": known, "tables": list(chosen.events), "min_events": config.min_user_events}
    found = distribute.gather(distribute.per_partition(raw, event_kernel, config.blocks, **settings))
    titles.settle(found, tally, bad)
    rows = pl.concat([pl.DataFrame(schema=sequences.EVENT), *found["events"]]).sort("user_id", "timestamp", "order", "event_id")
    profiles = pl.concat([pl.DataFrame(schema=PROFILE), *found["users"]])
    main = "ratings" if "ratings" in chosen.events else "sequences"
    rows, profiles = _without(erased, rows, main, tally), _without(erased, profiles, "users", tally)
    if config.event_log is not None:
        logged, counts = event_log.events_of(Path(config.event_log).absolute(), items)
        tally.merge({"event_log": {f"rows_{name}": n for name, n in counts.items()}})
        rows = pl.concat([rows, _without(erased, frame(logged), "event_log", tally)]).sort("user_id", "timestamp", "order", "event_id")
    users = rows.select(pl.col("user_id").unique()).join(profiles, on="user_id", how="left").sort("user_id")
    return table(rows, EVENTS), table(users, USERS)


def _without(erased: Erased | None, rows: pl.DataFrame, name: str, tally: Tally) -> pl.DataFrame:
    """The rows of users who were not erased; the others count as filtered."""
    if not erased or not rows.height:
        return rows
    kept = rows.filter(~pl.Series(erased.mask(rows["user_id"].to_arrow())))
    tally.add(name, out=kept.height - rows.height, filtered=rows.height - kept.height)
    return kept


PROFILE: dict[str, Any] = {"user_id": pl.String, "gender": pl.String, "age": pl.Int32, "occupation": pl.String}


# --- kernels: one partition of raw rows in, tables out; run in Ray's workers and, in tests, without Ray


def text_kernel(raw: pl.DataFrame, known: pl.DataFrame, partitions: int) -> Iterator[Piece]:
    here = raw["part"].unique().to_list()
    part = sequences.titles(raw, known.filter((pl.col("item_id").hash(seed=0) % partitions).cast(pl.Int32).is_in(here)))
    yield LOOSE, "items", part.items
    yield from titles.bookkeeping(part.tally, part.bad)


def token_kernel(raw: pl.DataFrame) -> Iterator[Piece]:
    yield LOOSE, "items", sequences.tokens(raw)


def event_kernel(raw: pl.DataFrame, kind: SourceKind, item_ids: pl.DataFrame, tables: list[str], min_events: int) -> Iterator[Piece]:
    users = pl.DataFrame(schema=PROFILE)
    if kind == "amazon":
        part, main = amazon.dated_events(raw, item_ids), "sequences"
    elif kind == "sequences":
        part, main = sequences.events(raw, item_ids, "view"), "sequences"
    else:
        (part, users), main = movielens.events(raw, item_ids, "users" in tables), "ratings"
    enough = part.items.filter(pl.len().over("user_id") >= min_events)
    dropped = part.items.height - enough.height
    part.tally.add(main, out=-dropped, filtered=dropped)
    yield LOOSE, "events", enough.select(pl.col(n).cast(k) for n, k in sequences.EVENT.items())
    yield LOOSE, "users", users.select(pl.col(n).cast(k) for n, k in PROFILE.items())
    yield from titles.bookkeeping(part.tally, part.bad)


def _reasons(bad: list[pl.DataFrame]) -> str:
    rows = pl.concat([pl.DataFrame(schema=BAD), *bad])
    if rows.height == 0:
        return "Check that the files belong together."
    first = rows.row(0, named=True)
    return f"{rows.height:,} rows could not be read, the first: {first['table']} row {first['row']}, {first['reason']}."


def _event_figures(events: pa.Table) -> dict[str, Any]:
    per_user = frame(events).group_by("user_id").len()["len"]
    seen = frame(events)["item_index"].n_unique()
    return {"events_per_user": {"min": int(per_user.min()), "median": float(per_user.median()), "max": int(per_user.max())}, "items_with_events": seen}  # type: ignore[arg-type]
