"""The quality of one ETL run: rules, accounting, quarantine, profile and drift as `quality.json`, and the same as one HTML page.

Choices: the rules come first, and a failed CRITICAL one stops the run; its page then holds rules, accounting and quarantine, and stays in the step's work
folder, since the step has no result. Plots are bars of inline SVG drawn by the template: a page of fifty of them costs no import and no second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from data.quality_check import check, stop
from data.quality_drift import drift
from data.quality_profile import profile
from data.quality_queries import CANONICAL, Tables
from data.quality_rules import SEVERITIES, rules
from ugt.artifacts import MANIFEST, Manifest, write_text
from ugt.schema import UGTError
from ugt.settings import QualityConfig

PAGE = "quality.html"
REASONS, ROWS_OF_REASON = 40, 3


def tables_of(folder: Path) -> tuple[Tables, Manifest]:
    """The tables of a finished ETL run. Raises UGTError naming the folder if it is none."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UGTError(f"{folder} is not the folder of a finished ETL run: it has no readable {MANIFEST}. Run `ugt data etl`, or name another.") from error
    if manifest.step != "etl":
        raise UGTError(f"{folder} is a result of the step {manifest.step}, not of etl. Name a folder under artifacts/etl.")
    return Tables(folder, manifest.figures), manifest


def run(etl_dir: Path, config: QualityConfig, out_dir: Path, work_dir: Path, against_dir: Path | None = None) -> dict[str, Any]:
    """Write `quality.json` and the page into `out_dir`; returns the figures. `against_dir`: the ETL run that these tables are compared with.

    Raises UGTError for a failed CRITICAL rule, and for a setting that names no rule.
    """
    tables, manifest = tables_of(Path(etl_dir))
    now = datetime.now(UTC)
    records = check(tables, rules(now), config.allowed)
    report: dict[str, Any] = {
        "etl": manifest.key,
        "source": manifest.figures.get("source", ""),
        "checked_at": now.isoformat(timespec="seconds"),
        "rows": {table: tables.rows[table] for table in CANONICAL},
        "rules": records,
        "accounting": manifest.figures["tables"],
        "quarantine": quarantine(tables),
        "profile": {},
        "drift": None,
    }
    critical = [record for record in records if record["severity"] == "CRITICAL" and record["verdict"] == "failed"]
    if critical:
        write_text(work_dir / PAGE, build(report))
        stop(critical, str(work_dir / PAGE))
    report["profile"] = profile(tables)
    if against_dir is not None:
        other, reference = tables_of(Path(against_dir))
        report["drift"] = {"against": reference.key} | drift(other, tables)
    write_text(out_dir / "quality.json", json.dumps(report, indent=1, allow_nan=False))
    write_text(out_dir / PAGE, build(report))
    return figures(report)


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Rules passed and failed by severity, and the column that is furthest from the reference."""
    verdicts = [record["verdict"] for record in report["rules"]]
    by_severity = {
        severity: {verdict: sum(r["verdict"] == verdict for r in report["rules"] if r["severity"] == severity) for verdict in ("passed", "failed")}
        for severity in SEVERITIES
    }
    found = {"rules": f"{verdicts.count('passed')} passed · {verdicts.count('failed')} failed", "by_severity": by_severity}
    if report["drift"] is None or not report["drift"]["columns"]:
        return found | {"worst_drift": None}
    worst = report["drift"]["columns"][0]
    shown = {"drift": f"{worst['verdict']} ({worst['column']} {worst['distance']:.2f})"}
    return (
        found | shown | {"worst_drift": {key: worst[key] for key in ("column", "psi", "ks", "distance", "verdict")} | {"against": report["drift"]["against"]}}
    )


def quarantine(tables: Tables) -> list[dict[str, Any]]:
    """Reasons by source table, the commonest first, numbers and the value after a colon left out, each with its first rows."""
    if not tables.rows["quarantine"]:
        return []
    kind = pl.col("reason").str.replace(r"(?s): .*$", "").str.replace_all(r"\d+", "#")
    rows = pl.struct("file", "row", "reason", pl.col("raw").str.slice(0, 160)).head(ROWS_OF_REASON)
    every = pl.scan_parquet(tables.parts("quarantine"), glob=False)  # its own `row` is that of the source file
    found = every.group_by("table", kind.alias("kind")).agg(rows=pl.len(), examples=rows)
    return (
        found.top_k(REASONS, by=["rows", "table", "kind"]).collect(engine="streaming").sort("table", "rows", "kind", descending=[False, True, False]).to_dicts()
    )


def build(report: Mapping[str, Any]) -> str:
    """The page: one file that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("ugt"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": lambda n: f"{n:,}", "share": _share, "number": _number, "day": _day, "fields": _fields}
    order = {"failed": 0, "not run": 1, "passed": 2}
    listed = sorted(report["rules"], key=lambda r: (order[r["verdict"]], SEVERITIES.index(r["severity"])))
    return environment.get_template("quality.html.j2").render(report=report, figures=figures(report), rules=listed, severities=SEVERITIES)


def _share(x: float) -> str:
    return "0" if x == 0 else f"{100 * x:.3g}%" if x >= 1e-5 else "< .001%"


def _number(x: float | None) -> str:
    if x is None:
        return ""
    if float(x).is_integer():
        return f"{x:.0f}" if abs(x) < 1e4 else f"{x:,.0f}"  # a year is not 1,994
    return f"{x:.4g}" if abs(x) < 1e4 else f"{x:,.0f}"


def _day(x: float) -> str:
    """A Unix time as a day, where it is one."""
    return f"{datetime.fromtimestamp(x, UTC):%Y-%m-%d}" if 0 <= x < 32_503_680_000 else _number(x)


def _fields(row: Mapping[str, Any]) -> str:
    return " · ".join(f"{key} {'(none)' if value is None else value}" for key, value in row.items())
