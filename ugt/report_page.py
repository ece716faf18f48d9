"""The report page of an evaluation: one self-contained HTML file with figures, intervals, slices, training curves and the protocol.

Choices: plots are SVG inside the page, drawn by matplotlib with its text left as text, so that the page needs no network, prints well and can be searched;
equal figures give an equal page. The page only shows what `metrics.json` and the curves hold: it computes nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugt.schema import HEADS, UGTError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[Mapping[str, Any]]]  # training -> rows of its curve.jsonl

TERMS = ("loss", "ntp", "dense", "contrastive", "dpo", "balance")
TITLES = {
    "fused": "UGT fused",
    "without_memory": "UGT without memory",
    "generative": "UGT generative",
    "dense": "UGT dense",
    "sasrec": "SASRec",
    "transitions": "transition counts",
    "word2vec": "Word2Vec",
    "item_knn": "item-kNN",
    "popularity": "popularity",
    "popularity_by_segment": "popularity by segment",
    "oracle": "oracle (true taste)",
}
SLICES = {"history_length": "Length of the history", "target_popularity": "Training events of the target", "cold_items": "Cold items"}
INK, ACCENT, MUTED, GRID = "#1d2330", "#2456d3", "#8a93a6", "#e4e8ef"
COLOURS = (ACCENT, "#d9622b", "#2a9d6f", "#8b5bd1", "#b58a00", "#5b6577")


def build(report: Mapping[str, Any], curves: Curves) -> str:
    """The page. `report` is metrics.json, with `comparison` (`ugt.comparison.compare`) and `curves` (a curves.json) where there are any."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("ugt"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": lambda x: "" if x is None else f"{x:.4f}", "signed": lambda x: "∞" if x is None else f"{x:+.4f}", "title": title}
    shown = [name for name in (*HEADS, *report["baselines"]) if name != "oracle"]
    best = max((n for n in shown if n not in HEADS), key=lambda n: report["baselines"][n]["filtered"]["ndcg@10"])
    both = {name: report["heads"].get(name) or report["baselines"][name] for name in (*HEADS, *report["baselines"])}

    def sliced(rows: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
        return lambda figure: _slices(figure, rows, list(dict.fromkeys(["fused", best, "popularity"])))

    drawn = {
        "accuracy": _draw(lambda f: _accuracy(f, report, shown), (10, 0.5 + 0.32 * len(shown))),
        "slices": {name: _draw(sliced(rows), (10, 2.6)) for name, rows in report["slices"].items() if len(rows) > 1},
        "training": _draw(lambda f: _training(f, curves), (10, 3.3)) if curves else "",
        "tradeoffs": _draw(lambda f: _tradeoffs(f, report["curves"]), (10, 3.8)) if report.get("curves") else "",
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        both=both,
        heads=HEADS,
        shown=shown,
        best=best,
        drawn=drawn,
        slice_titles=SLICES,
        comparison=report.get("comparison"),
        protocol=report["protocol"],
        has_sasrec="sasrec" in curves,
    )


def title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def read_curves(folders: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Rows of `curve.jsonl` in each folder. Raises UGTError naming a file that isn't there."""
    found = {}
    for name, folder in folders.items():
        path = Path(folder) / "curve.jsonl"
        try:
            found[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        except FileNotFoundError as error:
            raise UGTError(f"no training curve at {path}. Run `ugt train ugt` again.") from error
    return found


def _draw(paint: Callable[[Figure], None], inches: tuple[float, float]) -> str:
    """An SVG element with what `paint` draws into a figure of this size."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ugt",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "legend.frameon": False,
        "axes.prop_cycle": cycler(color=COLOURS),
    }
    with rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _accuracy(figure: Figure, report: Mapping[str, Any], shown: Sequence[str]) -> None:
    """Recall@10 and NDCG@10 with intervals of every ranking, under both rules."""
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for ax, metric in zip(axes, ("recall@10", "ndcg@10"), strict=True):
        for place, name in enumerate(reversed(shown)):
            colour = ACCENT if name in HEADS else MUTED
            for rule, offset, face in (("filtered", 0.14, colour), ("unfiltered", -0.14, "white")):
                value = (report["heads"].get(name) or report["baselines"][name])[rule][metric]
                low, high = report["intervals_by_rule"][rule][name][metric]
                ax.plot([low, high], [place + offset] * 2, color=colour, linewidth=1.6, solid_capstyle="round")
                ax.plot([value], [place + offset], "o", color=colour, markerfacecolor=face, markersize=5)
        ax.set_title(f"{metric}")
        ax.set_xlim(left=0)
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(shown)), [title(name) for name in reversed(shown)])
    axes[0].tick_params(axis="y", length=0)
    axes[1].tick_params(axis="y", length=0)


def _slices(figure: Figure, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    axes: Sequence[Axes] = figure.subplots(1, 2, width_ratios=(3, 1))
    ax, sizes = axes
    for i, name in enumerate(names):
        at = [x + 0.16 * (i - 1) for x in range(len(rows))]
        found = [row["filtered"][name]["recall@10"] for row in rows]
        colour = (ACCENT, "#d9622b", MUTED)[i]
        ax.vlines(at, [f[1] for f in found], [f[2] for f in found], color=colour, linewidth=1.6)
        ax.plot(at, [f[0] for f in found], "o", color=colour, markersize=5, label=title(name))
    ax.set_title("recall@10, filtered")
    ax.set_xticks(range(len(rows)), [row["slice"] for row in rows])
    ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_ylim(bottom=0)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, -0.12), fontsize=8)
    bars = sizes.barh(range(len(rows)), [row["users"] for row in rows], color=GRID, height=0.7)
    sizes.bar_label(bars, [f"{row['users']:,}" for row in rows], padding=4, fontsize=8)
    sizes.set_yticks(range(len(rows)), [row["slice"] for row in rows])
    sizes.invert_yaxis()
    sizes.set_title("users")
    sizes.set_xticks([])
    sizes.margins(x=0.25)
    sizes.grid(visible=False)


def _training(figure: Figure, curves: Curves) -> None:
    """Terms of the loss by epoch, one after the other, and the validation figure that decided which epoch was kept."""
    losses, validation = figure.subplots(1, 2)
    begin, marks = 0, []
    styles = {term: COLOURS[i] for i, term in enumerate(TERMS)}
    labelled: set[str] = set()
    ours = {name: rows for name, rows in curves.items() if name != "sasrec"}
    for name, rows in ours.items():
        epochs = [row for row in rows if row["epoch"] >= 0]
        for term in TERMS:
            points = [(begin + row["epoch"] + 1, row[term]) for row in epochs if term in row]
            if points:
                losses.plot(*zip(*points, strict=True), ".-", color=styles[term], label=None if term in labelled else term, linewidth=1.2)
                labelled.add(term)
        for i, key in enumerate(("score", "generative_ndcg@10", "dense_ndcg@10")):
            points = [(begin + row["epoch"] + 1, row["validation"][key]) for row in rows if key in row.get("validation", {})]
            if points:
                label = None if begin else ("both heads", "generative", "dense")[i]
                validation.plot(*zip(*points, strict=True), ".-", color=COLOURS[i], label=label, linewidth=1.2)
        marks.append((begin, name))
        begin += len(epochs)
    for row_name, rows in curves.items():
        points = [(row["epoch"] + 1, row["validation"]["score"]) for row in rows if "validation" in row]
        if row_name == "sasrec" and points:
            validation.plot(*zip(*points, strict=True), ".--", color=MUTED, label="SASRec", linewidth=1.2)
    for ax, heading in ((losses, "terms of the training loss, per target"), (validation, "NDCG@10 on validation, filtered")):
        ax.set_title(heading)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        for place, name in marks:
            ax.axvline(place, color=GRID, linewidth=1)
            ax.annotate(name, (place, 1), xycoords=("data", "axes fraction"), fontsize=7, color=MUTED, va="top", xytext=(3, 0), textcoords="offset points")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=6, columnspacing=1.2, handlelength=1.4)


def _tradeoffs(figure: Figure, tradeoffs: Mapping[str, Any]) -> None:
    """Recall against diversity of each decoding strategy: what it generates, and what is served of it."""
    sections = [("curves", "generative head, as decoded"), ("fused", "fused, as served")]
    sections = [section for section in sections if tradeoffs.get(section[0])]
    axes: Sequence[Axes] = figure.subplots(1, len(sections), squeeze=False)[0]
    for ax, (section, heading) in zip(axes, sections, strict=True):
        for name, points in tradeoffs[section].items():
            across, up = [p["diversity@10"] for p in points], [p["recall@10"] for p in points]
            # a strategy of one setting is a mark that lines must not hide
            mark: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) > 1 else {"marker": "D", "markersize": 7, "zorder": 3}
            ax.plot(across, up, label=name.replace("_", " "), linewidth=1.4, **mark)
            for x, y, point in zip(across, up, points, strict=True):
                ax.annotate(point.get("label") or "", (x, y), fontsize=7, color=MUTED, xytext=(4, 4), textcoords="offset points")
        ax.set_title(heading)
        ax.set_xlabel("diversity@10: 1 - mean cosine of the items of a list")
        ax.set_ylabel("recall@10, validation, filtered")
    axes[0].legend(fontsize=8)
