"""Sources to canonical tables: items, people, credits, users, events, and the quarantine of rows that could not be read.

Two shuffles at most: everything about a title meets by its key, everything about a user by the user. Output order follows from the
data alone (items by id, events by user, time and place in the file), so a second run writes the same tables. A source file is read as
it is; what leaves its rows on the way is counted per table, and the counts must add up (`figures["tables"]`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import ray

from data import distribute
from data.distribute import Tables, frame, table
from data.quality import BAD, Tally
from data.sources import amazon, imdb, movielens, sequences
from data.sources.rows import SourceFile, file_columns
from ugt import holdout
from ugt.artifacts import CREDITS, EVENTS, ITEMS, PEOPLE, QUARANTINE, USERS, write_table
from ugt.schema import SourceKind, UGTError
from ugt.settings import EtlConfig
from ugt.synthetic import SampleConfig, write_events_for


@dataclass(frozen=True)
class Plan:
    """The files of a source: by catalogue, people and events; `extra` are read as a whole by the driver."""

    titles: dict[str, SourceFile]
    names: SourceFile | None
    events: dict[str, SourceFile]
    extra: tuple[Path, ...] = ()

    @property
    def all(self) -> list[SourceFile]:
        return [*self.titles.values(), *([self.names] if self.names else []), *self.events.values()]


def plan(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None) -> Plan:
    """The files that are there. Raises UGTError naming the folder or file that is missing, and the flag that gives it."""
    if data_dir is None:
        raise UGTError(f"--source {kind} needs the folder that holds its files: --data-dir DIR.")
    data_dir = Path(data_dir).absolute()
    if kind == "imdb":
        found = imdb.files(data_dir)
        return Plan({t: f for t, f in found.items() if t != "name.basics"}, found.get("name.basics"), {})
    if kind in ("movielens", "sample"):
        own = movielens.files(data_dir)
        found = imdb.files(Path(imdb_dir).absolute()) if imdb_dir is not None else {}
        titles = {t: own[t] for t in ("movies", "links") if t in own} | {t: f for t, f in found.items() if t != "name.basics"}
        return Plan(titles, found.get("name.basics"), {t: own[t] for t in ("ratings", "users") if t in own})
    if kind == "amazon":
        return Plan({}, None, amazon.files(data_dir), tuple(amazon.side_files(data_dir)))
    own = sequences.files(data_dir)
    return Plan({"texts": own["texts"]} if "texts" in own else {}, None, {"sequences": own["sequences"]})


def check(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None) -> None:
    """Raises UGTError naming the folder or file that is missing, or the file that is empty or has other columns. Reads first lines only."""
    for source in plan(kind, data_dir, imdb_dir).all:
        file_columns(source)


def checksums(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None) -> dict[str, str]:
    """SHA-256 of every source file by its name: the inputs of the step. Raises UGTError for what is missing."""
    chosen = plan(kind, data_dir, imdb_dir)
    named = {(s.table, s.path) for s in chosen.all} | {(p.name, str(p)) for p in chosen.extra}
    digests = {}
    for name, path in sorted(named):
        with open(path, "rb") as f:
            digests[f"{name}:{Path(path).name}"] = hashlib.file_digest(f, "sha256").hexdigest()
    return digests


def run(kind: SourceKind, data_dir: Path | None, imdb_dir: Path | None, config: EtlConfig, out_dir: Path, sample: SampleConfig | None = None) -> dict[str, Any]:
    """Write the canonical tables into `out_dir` and return the figures. `sample`: size and seed of the events generated for `--source imdb`.

    Raises UGTError naming file and way out: missing folder or file, other columns, a file that is cut off, an empty catalogue, no events.
    """
    chosen = plan(kind, data_dir, imdb_dir)
    tally = Tally()
    bad: list[pa.Table] = []
    items, credits = _catalogue(kind, chosen, config, tally, bad)
    if items.num_rows == 0:
        raise UGTError(f"the catalogue of {data_dir} is empty: no readable title is left (types kept: {', '.join(config.title_types)}). {_reasons(bad)}")
    people = _people(chosen, credits, config, tally, bad)
    figures: dict[str, Any] = {"source": kind, "items": items.num_rows, "people": people.num_rows, "credits": credits.num_rows}
    write_table(people, out_dir / "people")
    if kind == "imdb":
        if config.hold_out:
            raise UGTError("etl.hold_out needs events of people; those of --source imdb are generated from the catalogue. Set it to 0, or name another source.")
        write_table(items, out_dir / "items")
        write_table(credits, out_dir / "credits")
        figures |= write_events_for(items, credits, sample or SampleConfig(), out_dir)
    else:
        events, users = _events(kind, chosen, items, config, tally, bad)
        if events.num_rows == 0:
            raise UGTError(f"{', '.join(f.name for f in chosen.events.values())} hold no event of a known item. {_reasons(bad)}")
        if config.hold_out:
            items, credits, events, held_figures = _hold_out(items, credits, events, config, out_dir / holdout.FOLDER)
            figures |= {"items": items.num_rows, "credits": credits.num_rows} | held_figures
        write_table(items, out_dir / "items")
        write_table(credits, out_dir / "credits")
        write_table(events, out_dir / "events")
        write_table(users, out_dir / "users")
        figures |= {"users": users.num_rows, "events": events.num_rows, "density": round(events.num_rows / (users.num_rows * items.num_rows), 6)}
        figures |= _event_figures(events)
    names = {f.table: f.name for f in chosen.all}
    quarantine = pl.concat([pl.DataFrame(schema=BAD), *(frame(b) for b in bad)]).sort("table", "row", "reason")
    quarantine = quarantine.with_columns(file=pl.col("table").replace_strict(names, default=None, return_dtype=pl.String))
    write_table(table(quarantine, QUARANTINE), out_dir / "quarantine")
    return figures | {"tables": tally.figures(), "quarantined": quarantine.height, "covered_by_imdb": _covered(chosen, items)}


def _hold_out(items: pa.Table, credits: pa.Table, events: pa.Table, config: EtlConfig, folder: Path) -> tuple[pa.Table, pa.Table, pa.Table, dict[str, Any]]:
    """What is kept of the tables, and figures; the rest goes to `folder`, where no step of the training looks."""
    parted = holdout.part(items, credits, events, config.hold_out, config.hold_out_seed)
    for name, held in (("items", parted.held_items), ("credits", parted.held_credits), ("events", parted.held_events)):
        write_table(held, folder / name)
    return parted.items, parted.credits, parted.events, {"held_out_items": parted.held_items.num_rows, "held_out_events": parted.held_events.num_rows}


def _catalogue(kind: SourceKind, chosen: Plan, config: EtlConfig, tally: Tally, bad: list[pa.Table]) -> tuple[pa.Table, pa.Table]:
    """(items with their index, credits)."""
    if kind == "amazon":
        about = amazon.texts(Path(chosen.events["sequences"].path).parent)
        found: dict[str, list[pa.Table]] = {"items": [amazon.titles(_tokens(chosen, config), about).to_arrow(compat_level=pl.CompatLevel.oldest())]}
    elif kind == "sequences":
        known = _tokens(chosen, config)
        if chosen.titles:
            raw = distribute.raw_rows(list(chosen.titles.values()), config.blocks)
            found = distribute.per_partition(raw, text_kernel, config.blocks, known=ray.put(known), partitions=config.blocks)
            met = pl.concat([pl.DataFrame(schema={"item_id": pl.String}), *(frame(t).select("item_id") for t in found["items"])])
            rest = known.join(met, on="item_id", how="anti")  # partitions that no text fell into
        else:
            found, rest = {"items": []}, known
        found["items"].append(amazon.titles(rest, amazon.NOTHING).to_arrow(compat_level=pl.CompatLevel.oldest()))
    else:
        files = dict(chosen.titles)
        if kind != "imdb":
            files |= movielens.keyed(files)
        raw = distribute.raw_rows(list(files.values()), config.blocks)
        found = distribute.per_partition(raw, title_kernel, config.blocks, tables=list(files), title_types=config.title_types)
    _settle(found, tally, bad)
    rows = (
        pl.concat([frame(t) for t in found["items"]] or [pl.DataFrame(schema=imdb.ITEM)]).sort("item_id").unique("item_id", keep="first", maintain_order=True)
    )
    rows = rows.with_row_index("item_index").with_columns(pl.col("item_index").cast(pl.Int32))
    credits = pl.concat([pl.DataFrame(schema=imdb.CREDIT), *(frame(t) for t in found.get("credits", []))])
    credits = credits.join(rows.select("item_id", "item_index"), on="item_id").sort("item_index", "role", "ordering", "person_id")
    return table(rows, ITEMS), table(credits, CREDITS)


def _tokens(chosen: Plan, config: EtlConfig) -> pl.DataFrame:
    found = distribute.per_block(distribute.raw_rows([chosen.events["sequences"]], config.blocks), token_kernel)
    return pl.concat([pl.DataFrame(schema={"item_id": pl.String}), *(frame(t) for t in found["items"])]).unique().sort("item_id")


def _people(chosen: Plan, credits: pa.Table, config: EtlConfig, tally: Tally, bad: list[pa.Table]) -> pa.Table:
    if chosen.names is None:
        return PEOPLE.empty_table()
    needed = pl.Series(frame(credits)["person_id"].unique().sort())
    found = distribute.per_block(distribute.raw_rows([chosen.names], config.blocks), people_kernel, needed=ray.put(needed))
    _settle(found, tally, bad)
    rows = pl.concat([pl.DataFrame(schema=imdb.PERSON), *(frame(t) for t in found.get("people", []))]).sort("person_id", "name")
    kept = rows.unique("person_id", keep="first", maintain_order=True)
    tally.add("name.basics", out=kept.height - rows.height, duplicate=rows.height - kept.height)
    return table(kept, PEOPLE)


def _events(kind: SourceKind, chosen: Plan, items: pa.Table, config: EtlConfig, tally: Tally, bad: list[pa.Table]) -> tuple[pa.Table, pa.Table]:
    known = ray.put(frame(items).select("item_id", "item_index"))
    raw = distribute.raw_rows(list(chosen.events.values()), config.blocks)
    found = distribute.per_partition(raw, event_kernel, config.blocks, kind=kind, item_ids=known, tables=list(chosen.events), min_events=config.min_user_events)
    _settle(found, tally, bad)
    rows = pl.concat([pl.DataFrame(schema=sequences.EVENT), *(frame(t) for t in found["events"])]).sort("user_id", "timestamp", "order", "event_id")
    profiles = pl.concat([pl.DataFrame(schema=PROFILE), *(frame(t) for t in found["users"])])
    users = rows.select(pl.col("user_id").unique()).join(profiles, on="user_id", how="left").sort("user_id")
    return table(rows, EVENTS), table(users, USERS)


PROFILE: dict[str, Any] = {"user_id": pl.String, "gender": pl.String, "age": pl.Int32, "occupation": pl.String}


# --- kernels: one partition of raw rows in, tables out; run in Ray's workers and, in tests, without Ray


def title_kernel(batch: pa.Table, tables: list[str], title_types: tuple[str, ...]) -> Tables:
    raw = frame(batch)
    part = movielens.titles(raw, tables) if "movies" in tables else imdb.titles(raw, tables, title_types)
    return {"items": _arrow(part.items), "credits": _arrow(part.credits), **_bookkeeping(part)}


def text_kernel(batch: pa.Table, known: pl.DataFrame, partitions: int) -> Tables:
    here = set(batch["part"].to_pylist())
    part = sequences.titles(frame(batch), known.filter((pl.col("item_id").hash(seed=0) % partitions).cast(pl.Int32).is_in(list(here))))
    return {"items": _arrow(part.items), **_bookkeeping(part)}


def token_kernel(batch: pa.Table) -> Tables:
    return {"items": _arrow(sequences.tokens(frame(batch)))}


def people_kernel(batch: pa.Table, needed: pl.Series) -> Tables:
    part = imdb.people(frame(batch), needed)
    return {"people": _arrow(part.items), **_bookkeeping(part)}


def event_kernel(batch: pa.Table, kind: SourceKind, item_ids: pl.DataFrame, tables: list[str], min_events: int) -> Tables:
    raw, users = frame(batch), pl.DataFrame(schema=PROFILE)
    if kind == "amazon":
        part, main = amazon.dated_events(raw, item_ids), "sequences"
    elif kind == "sequences":
        part, main = sequences.events(raw, item_ids, "view"), "sequences"
    else:
        (part, users), main = movielens.events(raw, item_ids, "users" in tables), "ratings"
    enough = part.items.filter(pl.len().over("user_id") >= min_events)
    dropped = part.items.height - enough.height
    part.tally.add(main, out=-dropped, filtered=dropped)
    rows = enough.select(pl.col(n).cast(k) for n, k in sequences.EVENT.items())
    return {"events": _arrow(rows), "users": _arrow(users.select(pl.col(n).cast(k) for n, k in PROFILE.items())), **_bookkeeping(part)}


def _bookkeeping(part: imdb.Part) -> dict[str, pa.Table]:
    return {"bad": _arrow(part.bad.select(pl.col(n).cast(k) for n, k in BAD.items())), "tally": pa.table({"json": [json.dumps(part.tally.counts)]})}


def _arrow(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def _settle(found: dict[str, list[pa.Table]], tally: Tally, bad: list[pa.Table]) -> None:
    for counts in found.pop("tally", []):
        tally.merge(json.loads(counts["json"][0].as_py()))
    bad += found.pop("bad", [])


def _reasons(bad: list[pa.Table]) -> str:
    rows = pl.concat([pl.DataFrame(schema=BAD), *(frame(b) for b in bad)])
    if rows.height == 0:
        return "Check that the files belong together."
    first = rows.row(0, named=True)
    return f"{rows.height:,} rows could not be read, the first: {first['table']} row {first['row']}, {first['reason']}."


def _covered(chosen: Plan, items: pa.Table) -> int:
    """Items that IMDb's title.basics describes (a head of the file covers few)."""
    return int(frame(items)["original_title"].is_not_null().sum()) if "title.basics" in chosen.titles else 0


def _event_figures(events: pa.Table) -> dict[str, Any]:
    per_user = frame(events).group_by("user_id").len()["len"]
    seen = frame(events)["item_index"].n_unique()
    return {"events_per_user": {"min": int(per_user.min()), "median": float(per_user.median()), "max": int(per_user.max())}, "items_with_events": seen}  # type: ignore[arg-type]
