"""Ray Data around the sources' kernels: read files, bring rows of one key together, run a kernel per partition.

A kernel takes and gives plain tables, so the same code is tested without Ray. Tables of different schemas travel as Arrow IPC bytes, one row of (part, name,
bytes) each: what Ray Data shuffles is then a few large rows per block, whatever they hold. A file is unpacked on the driver's node (a local folder is only
there) into chunks, which any node parses, narrows and cuts into partitions (`narrowed`); Ray Data's hash shuffle brings each partition together (`joined`). The
driver alone writes to disk, so workers need no shared folder: it gets Parquet bytes and holds one part at a time.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.sources.rows import CHUNK, FATAL, RAW, SourceFile, Unreadable, chunks, file_columns, parse, read
from ugt.schema import UGTError

PIECES = pa.schema([("source", pa.int32()), ("before", pa.int64()), ("chunk", pa.large_binary())])
PARTS = pa.schema([("part", pa.int32()), ("name", pa.string()), ("data", pa.large_binary())])
LOOSE = -1  # the part of what belongs to none: counts, bad rows
Piece = tuple[int, str, pl.DataFrame | bytes]  # bytes: a Parquet file
PARQUET = ".parquet"


def narrowed(sources: list[SourceFile], kernel: Callable[..., Iterable[Piece]], **arguments: Any) -> ray.data.Dataset:
    """`kernel(table, good, bad, **arguments)` over chunks of the files, as rows of PARTS. Large arguments go in as `ray.put` references.

    Raises UGTError if a file isn't there or has other columns.
    """
    columns = [file_columns(source) for source in sources]
    with _small_blocks():
        pieces = _listed(sources).map_batches(_pieces, fn_args=(sources,), batch_size=None, batch_format="pyarrow", num_cpus=0, ray_remote_args_fn=_here())
        return pieces.map_batches(_narrow, fn_args=(sources, columns, kernel, arguments), batch_size=None, batch_format="pyarrow")


def joined(dataset: ray.data.Dataset, parts: int, kernel: Callable[..., Iterable[Piece]], **arguments: Any) -> ray.data.Dataset:
    """`kernel(part, tables, **arguments)` over all rows of each part of PARTS, as rows of PARTS; `tables` by name. Loose ones pass through."""
    with _small_blocks():
        return dataset.groupby("part", num_partitions=parts).map_groups(_join, fn_args=(kernel, arguments), batch_format="pyarrow")


def stored(folder: Path, tables: tuple[str, ...]) -> ray.data.Dataset:
    """The canonical tables of an ETL folder, one block for each of their aligned part files, as rows of PARTS holding Parquet.

    Raises UGTError if a table isn't there or isn't cut like the first one.
    """
    files = {name: sorted(p.name for p in (folder / name).glob("*.parquet")) for name in tables}
    if not files[tables[0]]:
        raise UGTError(f"no Parquet file in {folder / tables[0]}. Run `ugt data etl` first.")
    for name in tables[1:]:
        if files[name] != files[tables[0]]:
            raise UGTError(f"{folder / name} is cut into other parts than {folder / tables[0]}. Run `ugt data etl` again.")
    rows = ray.data.from_items([{"file": file} for file in files[tables[0]]], override_num_blocks=len(files[tables[0]]))
    return rows.map_batches(
        _stored, fn_args=(str(folder), tables), batch_size=None, batch_format="pyarrow", num_cpus=0, ray_remote_args_fn=_here()
    ).materialize()


def each(dataset: ray.data.Dataset, kernel: Callable[..., Iterable[Piece]], **arguments: Any) -> ray.data.Dataset:
    """`kernel(part, tables, **arguments)` over each block of `stored`, as rows of PARTS."""
    return dataset.map_batches(_each, fn_args=(kernel, arguments), batch_size=None, batch_format="pyarrow")


def loose(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """The rows of PARTS that belong to no part."""
    return dataset.map_batches(lambda t: t.filter(pa.compute.equal(t["part"], LOOSE)), batch_size=None, batch_format="pyarrow")


def gather(dataset: ray.data.Dataset, out_dir: Path = Path()) -> dict[str, list[pl.DataFrame]]:
    """The tables of rows of PARTS by name, none where nothing came; Parquet files go to `<out_dir>/<name>/part-<part>.parquet` as they come.

    Raises UGTError with the sentence of a file that could not be read to its end.
    """
    found: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for part, name, data in zip(batch["part"].to_pylist(), batch["name"].to_pylist(), batch["data"], strict=True):
            if name.endswith(PARQUET):
                folder = out_dir / name.removesuffix(PARQUET)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"part-{part:05d}.parquet").write_bytes(data.as_buffer())
            else:
                found[name].append(unpacked(data))
    if FATAL in found:
        raise UGTError(found[FATAL][0]["reason"][0])
    return found


def packed(pieces: Iterable[Piece]) -> pa.Table:
    """Rows of PARTS; empty tables are left out."""
    rows: list[tuple[int, str, bytes]] = []
    for part, name, data in pieces:
        if isinstance(data, bytes):
            rows.append((part, name, data))
        elif data.height:
            sink = pa.BufferOutputStream()
            arrow = data.to_arrow()
            with pa.ipc.new_stream(sink, arrow.schema) as writer:
                writer.write_table(arrow)
            rows.append((part, name, sink.getvalue().to_pybytes()))
    return pa.table([pa.array(c, t) for c, t in zip(zip(*rows, strict=True), PARTS.types, strict=True)], schema=PARTS) if rows else PARTS.empty_table()


def unpacked(data: pa.LargeBinaryScalar) -> pl.DataFrame:
    return frame(pa.ipc.open_stream(data.as_buffer()).read_all())


def parquet(rows: pl.DataFrame, schema: pa.Schema) -> bytes:
    """A Parquet file of a frame under one of `ugt.artifacts`' schemas."""
    sink = pa.BufferOutputStream()
    pq.write_table(table(rows, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def split(rows: pl.DataFrame, name: str, size: int) -> Iterator[Piece]:
    """A table cut by its `slot` into parts of `size` slots."""
    for (part,), piece in rows.with_columns(part=pl.col("slot") // size).partition_by("part", as_dict=True, include_key=False).items():
        yield int(part), name, piece


def _pieces(batch: pa.Table, sources: list[SourceFile]) -> Iterator[pa.Table]:
    yield PIECES.empty_table()  # a file without rows still has the schema
    for number in batch["source"].to_pylist():
        try:
            for before, chunk in chunks(sources[number]):
                yield pa.table({"source": [number], "before": [before], "chunk": [chunk]}, schema=PIECES)
        except Unreadable as error:
            yield pa.table({"source": [-1], "before": [error.row], "chunk": [str(error).encode()]}, schema=PIECES)


def _narrow(
    batch: pa.Table, sources: list[SourceFile], columns: list[list[str]], kernel: Callable[..., Iterable[Piece]], arguments: dict[str, Any]
) -> pa.Table:
    arguments = _resolved(arguments)
    pieces: list[Piece] = []
    for number, before, chunk in zip(batch["source"].to_pylist(), batch["before"].to_pylist(), batch["chunk"], strict=True):
        if number < 0:
            pieces.append((LOOSE, FATAL, pl.DataFrame({"reason": [chunk.as_py().decode()]})))
        else:
            source = sources[number]
            good, bad = parse(source, columns[number], chunk.as_py(), before)
            pieces += kernel(source.table, good, bad.select(table=pl.lit(source.table), row="row", reason="reason", raw="raw"), **arguments)
    return packed(pieces)


def _join(batch: pa.Table, kernel: Callable[..., Iterable[Piece]], arguments: dict[str, Any]) -> pa.Table:
    if not batch.num_rows:
        return PARTS.empty_table()
    part = batch["part"][0].as_py()
    if part == LOOSE:
        return batch
    tables: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for name, data in zip(batch["name"].to_pylist(), batch["data"], strict=True):
        tables[name].append(unpacked(data))
    return packed(kernel(part, {name: pl.concat(rows) for name, rows in tables.items()}, **_resolved(arguments)))


def _stored(batch: pa.Table, folder: str, tables: tuple[str, ...]) -> Iterator[pa.Table]:
    for file in batch["file"].to_pylist():
        number = int(file.removeprefix("part-").removesuffix(PARQUET))
        yield packed((number, name, (Path(folder) / name / file).read_bytes()) for name in tables)


def _each(batch: pa.Table, kernel: Callable[..., Iterable[Piece]], arguments: dict[str, Any]) -> pa.Table:
    arguments, tables = _resolved(arguments), defaultdict[int, dict[str, pl.DataFrame]](dict)
    for part, name, data in zip(batch["part"].to_pylist(), batch["name"].to_pylist(), batch["data"], strict=True):
        tables[part][name] = pl.read_parquet(io.BytesIO(data.as_buffer()))
    return packed(piece for part, named in tables.items() for piece in kernel(part, named, **arguments))


def _resolved(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: ray.get(value) if isinstance(value, ray.ObjectRef) else value for name, value in arguments.items()}


def _listed(sources: list[SourceFile]) -> ray.data.Dataset:
    return ray.data.from_items([{"source": i} for i in range(len(sources))], override_num_blocks=max(1, len(sources)))


def _here() -> Callable[[], dict[str, Any]]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return lambda: {"scheduling_strategy": here}


@contextmanager
def _small_blocks() -> Iterator[None]:
    """Blocks of about a chunk, so that there are many to work on at once; Ray Data's own size would join eight. And no cores kept for steps that wait:
    on a machine of two, parsing would have one."""
    context = ray.data.DataContext.get_current()
    before = context.target_max_block_size, context.op_resource_reservation_enabled
    context.target_max_block_size, context.op_resource_reservation_enabled = CHUNK, False
    try:
        yield
    finally:
        context.target_max_block_size, context.op_resource_reservation_enabled = before


def raw_rows(sources: list[SourceFile], parts: int) -> ray.data.Dataset:
    """All rows of the files as RAW, one reading task per file, on the driver's node (a local folder is only there).

    Raises UGTError if a file isn't there or has other columns.
    """
    for source in sources:
        file_columns(source)
    return _listed(sources).map_batches(_read, fn_args=(sources, parts), batch_size=None, batch_format="pyarrow", num_cpus=0, ray_remote_args_fn=_here())


def _read(batch: pa.Table, sources: list[SourceFile], parts: int) -> Iterator[pa.Table]:
    yield RAW.empty_table()  # a file without rows still has the schema
    for number in batch["source"].to_pylist():
        yield from read(sources[number], parts)


def per_partition(dataset: ray.data.Dataset, kernel: Callable[..., Iterable[Piece]], parts: int, **arguments: Any) -> ray.data.Dataset:
    """`kernel(rows, **arguments)` over all plain rows of each `part`, as rows of PARTS. Large arguments go in as `ray.put` references."""
    return dataset.groupby("part", num_partitions=parts).map_groups(_run, fn_args=(kernel, arguments), batch_format="pyarrow")


def per_block(dataset: ray.data.Dataset, kernel: Callable[..., Iterable[Piece]], **arguments: Any) -> ray.data.Dataset:
    """The same without a shuffle: the kernel sees a block of rows at a time."""
    return dataset.map_batches(_run, fn_args=(kernel, arguments), batch_size=None, batch_format="pyarrow")


def _run(batch: pa.Table, kernel: Callable[..., Iterable[Piece]], arguments: dict[str, Any]) -> pa.Table:
    rows = frame(batch.combine_chunks())
    fatal = rows.filter(pl.col("table") == FATAL) if "table" in rows.columns else rows.clear()
    if fatal.height:
        return packed([(LOOSE, FATAL, fatal.select("reason"))])
    return packed(kernel(rows, **_resolved(arguments)) if rows.height else ())


def frame(batch: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(batch))


def table(rows: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """A polars frame under one of `ugt.artifacts`' schemas."""
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest()).select(schema.names).cast(schema)
