"""Ray Data around the sources' kernels: read files into raw rows, bring rows of one key together, run a kernel per partition.

A kernel takes and gives plain tables, so the same code is tested without Ray. What a partition gives back (several tables of different
schemas) travels as Arrow IPC bytes in one row per table; the driver alone writes to disk, so workers need no shared folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl
import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.sources.rows import FATAL, RAW, SourceFile, file_columns, read
from ugt.schema import UGTError

# what a kernel gives back: tables by name
Tables = Mapping[str, pa.Table]
BLOBS = pa.schema([("name", pa.string()), ("ipc", pa.large_binary())])


def raw_rows(sources: list[SourceFile], parts: int) -> ray.data.Dataset:
    """All rows of the files as RAW, one reading task per file, on the driver's node (a local folder is only there).

    Raises UGTError if a file isn't there or has other columns.
    """
    for source in sources:
        file_columns(source)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    dataset = ray.data.from_items([{"source": i} for i in range(len(sources))], override_num_blocks=len(sources))
    return dataset.map_batches(
        _read, fn_args=(sources, parts), batch_size=None, batch_format="pyarrow", num_cpus=0, ray_remote_args_fn=lambda: {"scheduling_strategy": here}
    )


def _read(batch: pa.Table, sources: list[SourceFile], parts: int) -> Iterator[pa.Table]:
    yield RAW.empty_table()  # a file without rows still has the schema
    for number in batch["source"].to_pylist():
        yield from read(sources[number], parts)


def per_partition(dataset: ray.data.Dataset, kernel: Callable[..., Tables], parts: int, **arguments: Any) -> dict[str, list[pa.Table]]:
    """`kernel(frame, **arguments)` over all rows of each `part`; the tables it gave, by name. Large arguments go in as `ray.put` references."""
    grouped = dataset.groupby("part", num_partitions=parts)
    return collect(grouped.map_groups(_run, fn_args=(kernel, arguments), batch_format="pyarrow"))


def per_block(dataset: ray.data.Dataset, kernel: Callable[..., Tables], **arguments: Any) -> dict[str, list[pa.Table]]:
    """The same without a shuffle: the kernel sees a block of rows at a time."""
    return collect(dataset.map_batches(_run, fn_args=(kernel, arguments), batch_size=None, batch_format="pyarrow"))


def _run(batch: pa.Table, kernel: Callable[..., Tables], arguments: dict[str, Any]) -> pa.Table:
    if batch.num_rows == 0:
        return BLOBS.empty_table()
    batch = batch.combine_chunks()
    fatal = batch.filter(pa.compute.equal(batch["table"], FATAL)) if "table" in batch.column_names else batch.slice(0, 0)
    if fatal.num_rows:
        return _pack({FATAL: fatal.select(["reason"])})
    arguments = {name: ray.get(value) if isinstance(value, ray.ObjectRef) else value for name, value in arguments.items()}
    return _pack(kernel(batch, **arguments))


def _pack(tables: Tables) -> pa.Table:
    names, blobs = [], []
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        names.append(name)
        blobs.append(sink.getvalue().to_pybytes())
    return pa.table({"name": names, "ipc": blobs}, schema=BLOBS)


def collect(dataset: ray.data.Dataset) -> dict[str, list[pa.Table]]:
    """The tables of every partition. Raises UGTError with the sentence of a file that could not be read to its end."""
    found: dict[str, list[pa.Table]] = defaultdict(list)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for name, blob in zip(batch["name"].to_pylist(), batch["ipc"].to_pylist(), strict=True):
            found[name].append(pa.ipc.open_stream(blob).read_all())
    if FATAL in found:
        raise UGTError(found[FATAL][0]["reason"][0].as_py())
    return found


def frame(batch: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(batch))


def table(rows: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """A polars frame under one of `ugt.artifacts`' schemas."""
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest()).select(schema.names).cast(schema)
