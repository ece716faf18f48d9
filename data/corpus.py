"""The corpus of Word2Vec by Ray Data: tables and histories to sentences (`ugt.sequences`), a text file per family and part.

Rows of items and credits meet in parts, ranges of item_index, by one shuffle; what people worked on meets by a second, on the person. Parts
follow from the sizes of the tables alone, so the corpus is the same on every cluster. A catalogue of one part needs no shuffle. Tasks give
their text back: the driver alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from ugt import histories
from ugt.artifacts import CREDITS, EPISODES, ITEMS, parquet_files, read_table
from ugt.features import people_of
from ugt.histories import HistoryConfig
from ugt.sequences import (
    ITEM_FAMILIES,
    PERSON_FAMILIES,
    Corpus,
    CorpusConfig,
    Family,
    Lines,
    Pair,
    as_lines,
    episode_sentences,
    history_sentences,
    item_sentences,
    item_tokens,
    pairs,
    person_sentences,
    stable_hash,
    token,
)

PART_ITEMS, PART_CREDITS, PART_USERS = 65_536, 1_000_000, 65_536  # rows of a part: some 10 MB of text
ABOUT = ["item_index", "item_id", "item_type", "year", "genres", "countries", "rating"]
CREDITED = ["item_index", "person_id", "role", "ordering"]
ROWS = pa.schema([("part", pa.int32()), *(ITEMS.field(name) for name in ABOUT), *(CREDITS.field(name) for name in CREDITED[1:])])
PAIRS = pa.schema([("person", pa.string()), ("item_index", pa.int32()), ("item", pa.string()), ("genres", pa.list_(pa.string()))])
PAIRS_BLOB = "pairs"  # rows of LINES that hold PAIRS (Arrow IPC) instead of text: one shuffle feeds both kinds of families
LINES = pa.schema([("family", pa.string()), ("part", pa.int32()), ("text", pa.large_binary()), ("sentences", pa.int64()), ("words", pa.int64())])

Kernel = Callable[..., pa.Table]


def run(etl_dir: Path, histories_dir: Path, config: CorpusConfig, out_dir: Path, history: HistoryConfig = HistoryConfig()) -> dict[str, Any]:
    """The pieces of the corpus and `corpus.json`. Only the training part of the histories is read.

    Figures: sentences and words of each family, those that gave nothing, and why. Raises UGTError if a table is not there.
    """
    etl_dir, corpus, wanted = Path(etl_dir), Corpus(Path(out_dir)), set(config.families)
    items, credits = parquet_files(etl_dir / "items"), parquet_files(etl_dir / "credits")
    count, credited = (sum(pq.read_metadata(path).num_rows for path in files) for files in (items, credits))
    parts = max(1, -(-count // PART_ITEMS))
    of_items, of_people = [f for f in ITEM_FAMILIES if f in wanted], [f for f in PERSON_FAMILIES if f in wanted]
    if of_items or of_people:
        made = together(_rows(items, credits), item_part, parts, of_items, bool(of_people)).materialize()
        _keep(corpus, made.map_batches(only_text, batch_size=None, batch_format="pyarrow"))
        if of_people:
            shares = max(1, -(-credited // PART_CREDITS))
            worked = made.map_batches(only_pairs, fn_args=(shares,), batch_size=None, batch_format="pyarrow")
            _keep(corpus, together(worked, person_part, shares, of_people))
    if "history" in wanted:
        _keep(corpus, _histories(items, histories.load(histories_dir), history))
    has_episodes = (etl_dir / "episodes").is_dir()
    if "episodes" in wanted and has_episodes:
        corpus.add("episodes", 0, as_lines(episode_sentences(read_table(etl_dir / "episodes", EPISODES))))
    corpus.close()
    empty = [family for family in config.families if family not in corpus.figures()]
    why = {} if has_episodes or "episodes" not in wanted else {"episodes": "the tables hold no episodes (etl.title_types leaves them out)"}
    return {
        "items": count,
        "sentences": corpus.sentences,
        "words": corpus.words,
        "families": corpus.figures(),
        "empty": {family: why.get(family, "no row of the tables gives a sentence") for family in empty},
    }


def together(dataset: ray.data.Dataset, kernel: Kernel, parts: int, *arguments: Any) -> ray.data.Dataset:
    """`kernel(rows, *arguments)` over all rows of each `part`; of one part, without a shuffle."""
    if parts == 1:
        return dataset.repartition(1).map_batches(kernel, fn_args=arguments, batch_size=None, batch_format="pyarrow")
    return dataset.groupby("part", num_partitions=parts).map_groups(kernel, fn_args=arguments, batch_format="pyarrow")


def _rows(items: list[Path], credits: list[Path]) -> ray.data.Dataset:
    """ROWS of both tables, a row group at a time."""
    groups = [{"path": str(path), "group": g} for path in (*items, *credits) for g in range(pq.read_metadata(path).num_row_groups)]
    return ray.data.from_items(groups, override_num_blocks=len(groups)).map_batches(read_groups, batch_size=None, batch_format="pyarrow")


def read_groups(batch: pa.Table) -> Iterator[pa.Table]:
    """Row groups of items or credits as ROWS."""
    for path, group in zip(batch["path"].to_pylist(), batch["group"].to_pylist(), strict=True):
        file = pq.ParquetFile(path)
        table = file.read_row_group(group, columns=[name for name in ROWS.names if name in file.schema_arrow.names])
        if "item_type" not in table.column_names:  # credits: the item's id stands with the item
            table = table.select(CREDITED)
        columns = {name: table[name] if name in table.column_names else pa.nulls(table.num_rows, ROWS.field(name).type) for name in ROWS.names[1:]}
        part = pa.array(table["item_index"].to_numpy() // PART_ITEMS, pa.int32())
        yield pa.table({"part": part, **columns}).cast(ROWS)


def item_part(rows: pa.Table, families: list[Family], with_people: bool) -> pa.Table:
    """LINES of the ROWS of one part: the families of items, and the PAIRS of their people."""
    is_item = pc.is_valid(rows["item_id"])
    items, credits = rows.filter(is_item).sort_by("item_index"), rows.filter(pc.invert(is_item))
    if not items.num_rows:
        return LINES.empty_table()
    part, first = items["part"][0].as_py(), items["item_index"][0].as_py()
    here = credits.set_column(1, "item_index", pc.subtract(credits["item_index"], pa.scalar(first, pa.int32())))
    about = items.select(ABOUT).to_pylist()
    tokens = [item_tokens(row, credit) for row, credit in zip(about, people_of(here, len(about)), strict=True)]
    words = [token("MOV", row["item_id"]) for row in about]
    found: list[tuple[str, int, Lines]] = [(family, part, as_lines(item_sentences(family, words, tokens))) for family in families]
    if with_people:
        worked = list(pairs(words, tokens, first))
        table = pa.Table.from_pylist([pair._asdict() for pair in worked], PAIRS)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, PAIRS) as writer:
            writer.write_table(table)
        found.append((PAIRS_BLOB, part, Lines(sink.getvalue().to_pybytes(), 0, 0)))
    return _lines(found)


def only_text(lines: pa.Table) -> pa.Table:
    return lines.filter(pc.not_equal(lines["family"], PAIRS_BLOB))


def only_pairs(lines: pa.Table, shares: int) -> Iterator[pa.Table]:
    """PAIRS with the part of the person, one of `shares`."""
    yield pa.table([[], *([[]] * len(PAIRS))], schema=pa.schema([("part", pa.int32()), *PAIRS]))
    for blob in lines.filter(pc.equal(lines["family"], PAIRS_BLOB))["text"].to_pylist():
        table = pa.ipc.open_stream(blob).read_all()
        yield table.add_column(0, "part", pa.array([stable_hash(person) % shares for person in table["person"].to_pylist()], pa.int32()))


def person_part(worked: pa.Table, families: list[Family]) -> pa.Table:
    """LINES of the families of people, of one part."""
    found = [Pair(*row) for row in zip(*(worked[name].to_pylist() for name in Pair._fields), strict=True)]
    return _lines([(family, worked["part"][0].as_py(), as_lines(person_sentences(family, found))) for family in families] if found else [])


def _histories(items: list[Path], past: histories.Histories, history: HistoryConfig) -> ray.data.Dataset:
    """LINES of the users' histories."""
    split = history.apply(past)
    _, seen = split.train_events()
    offsets = pa.array(np.concatenate([[0], np.cumsum(split.train_lengths)]), pa.int32())
    part = pa.array(np.arange(len(past)) // PART_USERS, pa.int32())
    table = pa.table({"part": part, "seen": pa.ListArray.from_arrays(offsets, pa.array(seen, pa.int32()))})
    ids = pa.concat_tables([pq.read_table(path, columns=["item_index", "item_id"]) for path in items]).sort_by("item_index")["item_id"]
    blocks = [table.slice(start, PART_USERS).combine_chunks() for start in range(0, len(past), PART_USERS)]
    return ray.data.from_arrow(blocks).map_batches(history_lines, fn_args=(ray.put(ids.combine_chunks()),), batch_size=None, batch_format="pyarrow")


def history_lines(batch: pa.Table, ids: ray.ObjectRef) -> pa.Table:
    """LINES of the histories of one part of the users."""
    item_ids = ray.get(ids)
    seen = batch["seen"].combine_chunks()
    used = {i: token("MOV", item_ids[i].as_py()) for i in np.unique(seen.flatten().to_numpy()).tolist()}
    lists = (row.values.to_numpy() for row in seen)
    return _lines([("history", batch["part"][0].as_py(), as_lines(history_sentences(used, lists)))])


def _lines(found: Sequence[tuple[str, int, Lines]]) -> pa.Table:
    return pa.Table.from_pylist([{"family": family, "part": part} | lines._asdict() for family, part, lines in found], LINES)


def _keep(corpus: Corpus, dataset: ray.data.Dataset) -> None:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            corpus.add(row["family"], row["part"], Lines(row["text"], row["sentences"], row["words"]))
