"""Runs the rules of `data/quality_rules.py` over the tables of one ETL run, part by part, and says what each of them found.

Choices: rules of a row are judged by pandera on batches of BATCH rows, read one after the other from each part, so memory does not grow with the table; a part
whose columns are not those of `ugt/artifacts.py` is found by its schema alone, and the other rules of its table are then not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandera.polars as pa
import polars as pl
import pyarrow.parquet as pq
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaErrors

from data.quality_queries import EXAMPLES, ROW, Finding, Tables, shown
from data.quality_rules import Rule, schema
from ugt.schema import UGTError

BATCH = 500_000
# named with the row where a rule finds one broken
KEYS = {"items": ("item_id", "title"), "people": ("person_id",), "credits": ("item_id", "person_id"), "users": ("user_id",), "events": ("event_id", "user_id")}


def check(tables: Tables, chosen: tuple[Rule, ...], allowed: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """One record for each rule, in their order: name, severity, meaning, allowed, rows, failed, share, verdict, examples.

    `verdict` is passed, failed (more than `allowed` of the rows break it) or not run (the columns of its table are wrong). `allowed` sets the share
    of rules by name. Raises UGTError for a name that is no rule.
    """
    allowed = dict(allowed or {})
    unknown = set(allowed) - {rule.name for rule in chosen}
    if unknown:
        raise UGTError(f"quality.allowed names {', '.join(sorted(unknown))}, which is no rule. The rules are: {', '.join(rule.name for rule in chosen)}.")
    columns = sorted(set(allowed) & {rule.name for rule in chosen if rule.of_columns})
    if columns:
        raise UGTError(f"quality.allowed names {', '.join(columns)}: nothing can read a table without its columns. Take it out, and run the ETL again.")
    found: dict[str, Finding] = {}
    broken = set()
    for rule in chosen:
        if rule.of_columns:
            found[rule.name] = _columns(tables, rule.table)
            if found[rule.name].failed:
                broken.add(rule.table)
    for table in dict.fromkeys(rule.table for rule in chosen if rule.check is not None):
        if table not in broken:
            found |= _rows(tables, table, tuple(rule for rule in chosen if rule.table == table and rule.check is not None))
    for rule in chosen:
        if rule.query is not None and not broken & {rule.table, getattr(rule.query, "to", "")}:
            found[rule.name] = rule.query.ask(tables, rule.table)
    return [_record(rule, found.get(rule.name), allowed.get(rule.name, rule.allowed)) for rule in chosen]


def stop(records: list[dict[str, Any]], page: str) -> None:
    """Raises UGTError for the first CRITICAL rule that failed: its table, how many rows, the first of them, and the way out."""
    failed = [record for record in records if record["severity"] == "CRITICAL" and record["verdict"] == "failed"]
    if not failed:
        return
    first = failed[0]
    more = f" {len(failed) - 1} more CRITICAL rules failed: {', '.join(r['name'] for r in failed[1:])}." if len(failed) > 1 else ""
    rows = f" The first: {'; '.join(', '.join(f'{k} {v}' for k, v in row.items()) for row in first['examples'][:3])}." if first["examples"] else ""
    out = "Mend the source file and run again."
    if not first["name"].endswith(".columns"):
        out += f" To go on in spite of it, set the share of rows that may break the rule: quality.allowed: {{{first['name']}: {_enough(first)}}}."
    raise UGTError(
        f"CRITICAL rule {first['name']} failed: {first['meaning']}, but {first['failed']:,} of {first['rows']:,} rows of {first['table']} break it."
        f"{rows}{more} All of it is on {page}. {out}"
    )


def _enough(record: Mapping[str, Any]) -> float:
    """A share with few digits that lets this table pass."""
    return min(1.0, -(-record["share"] * 1000 // 1) / 1000) if record["rows"] else 1.0


def _record(rule: Rule, finding: Finding | None, allowed: float) -> dict[str, Any]:
    record: dict[str, Any] = {"name": rule.name, "table": rule.table, "severity": rule.severity, "meaning": rule.meaning, "allowed": allowed}
    if finding is None:
        return record | {"rows": 0, "failed": 0, "share": 0.0, "verdict": "not run", "examples": []}
    share = finding.failed / max(finding.rows, 1)  # an empty table that must not be is 1 of 1
    verdict = "failed" if share > allowed else "passed"
    return record | {"rows": finding.rows, "failed": finding.failed, "share": share, "verdict": verdict, "examples": finding.examples}


def _columns(tables: Tables, table: str) -> Finding:
    """Parts whose columns are missing or of another type; a table without a part counts as one."""
    parts, wanted, wrong = tables.parts(table), schema(table, ()), []
    for part in parts:
        try:
            wanted.validate(pl.scan_parquet(part, glob=False), lazy=True)  # a lazy frame: pandera looks at its schema alone
        except SchemaErrors as errors:
            wrong.append({"part": part.name, "wrong": "; ".join(str(error).split("\n")[0] for error in errors.schema_errors)[:300]})
    if not parts:
        wrong.append({"part": f"{table}/", "wrong": "there is no Parquet file"})
    return Finding(max(len(parts), 1), len(wrong), wrong[:EXAMPLES])


def _rows(tables: Tables, table: str, mine: tuple[Rule, ...]) -> dict[str, Finding]:
    by_name = {rule.name: rule for rule in mine}
    wanted = schema(table, mine)
    rows, failed, examples = 0, dict.fromkeys(by_name, 0), {name: list[dict[str, Any]]() for name in by_name}
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):  # whatever the environment says
        for batch in _batches(tables, table):
            rows += batch.height
            for name, broken in _failing(wanted, batch).items():
                failed[name] += int(broken.sum())
                if len(examples[name]) < EXAMPLES:
                    examples[name] += shown(batch.filter(broken).select(*dict.fromkeys((ROW, *KEYS[table], *by_name[name].reads))))
    return {name: Finding(rows, failed[name], examples[name][:EXAMPLES]) for name in by_name}


def _batches(tables: Tables, table: str) -> Iterator[pl.DataFrame]:
    seen = 0
    for part in tables.parts(table):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                frame = pl.DataFrame(pl.from_arrow(batch)).with_columns(pl.int_range(seen, seen + batch.num_rows, dtype=pl.Int64).alias(ROW))
                seen += batch.num_rows
                yield frame


def _failing(wanted: pa.DataFrameSchema, batch: pl.DataFrame) -> dict[str, pl.Series]:
    """By rule, which rows of the batch break it; rules that all rows keep are left out."""
    try:
        wanted.validate(batch, lazy=True)
    except SchemaErrors as errors:
        found = {}
        for error in errors.schema_errors:
            if error.check_output is None:  # not a verdict of a check: the check itself could not be computed
                raise RuntimeError(f"a rule of {wanted.name} could not be judged: {error}") from error
            found[error.check.name] = ~error.check_output.to_series()
        return found
    return {}
