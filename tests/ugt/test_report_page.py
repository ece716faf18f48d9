"""The report page: one file that needs nothing else, and says what metrics.json says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ugt.report_page import build, read_curves
from ugt.schema import HEADS, UGTError

MEASURES = {f"{m}@{k}": 0.1 for m in ("recall", "ndcg", "mrr", "hit", "map") for k in (5, 10, 20, 50)}
BEYOND = {"coverage@10": 0.5, "distinct@10": 40.0, "gini@10": 0.3, "novelty@10": 8.25, "diversity@10": 0.7}
RULES = ("filtered", "unfiltered")


def report() -> dict[str, Any]:
    names = {"without_memory": 0.22, "fused": 0.2468, "generative": 0.2, "dense": 0.21, "popularity": 0.05, "transitions": 0.1357}
    both = {name: {rule: MEASURES | BEYOND | {"ndcg@10": value, "recall@10": value} for rule in RULES} for name, value in names.items()}
    own = {name: {metric: [value - 0.01, value + 0.01] for metric in ("recall@10", "ndcg@10")} for name, value in names.items()}
    minus = {name: {metric: [0.01, 0.02] for metric in ("recall@10", "ndcg@10")} for name in names if name != "fused"}
    figures = {name: {metric: [value, value - 0.01, value + 0.01] for metric in ("recall@10", "ndcg@10")} for name, value in names.items()}
    rows = [{"slice": s, "users": 50, "filtered": figures, "unfiltered": figures} for s in ("1 to 3", "4 to 5")]
    return {
        "protocol": {
            "split": "leave-one-out: the last",
            "tie_rule_events": "time",
            "ranking": "all",
            "tie_rule_rankings": "lower index",
            "filter_rule": "removed",
        }
        | {"users": 120, "users_evaluated": 100, "catalogue": 80, "catalogue_hash": "ab" * 8, "train_events": 900, "targets_seen_before": 3, "beam_width": 50}
        | {
            "fusion": {"method": "log_probability", "weight": 0.5, "followed": 0.0, "likeness": 0.0, "chosen_on": "validation"},
            "knn_neighbours": 200,
            "intervals": "95%",
            "seed": 0,
        }
        | {"baseline_settings": {"transitions": {"settings": {"recency": 0.4}, "validation_ndcg@10": 0.1}}},
        "heads": {name: both[name] for name in HEADS},
        "baselines": {name: both[name] for name in ("popularity", "transitions")} | {"oracle": {"filtered": MEASURES | BEYOND}},
        "intervals_by_rule": dict.fromkeys(RULES, own),
        "fused_minus": dict.fromkeys(RULES, minus),
        "slices": {"history_length": rows, "cold_items": rows[:1]},
        "permuted": {"recall@10": 0.01, "popularity_recall@10": 0.05, "falls_to_popularity": True},
        "alarms": [],
    }


CURVES = {
    "stage 1": [{"epoch": -1, "validation": {"score": 0.01}}, {"epoch": 0, "loss": 9.0, "ntp": 5.0, "validation": {"score": 0.2, "dense_ndcg@10": 0.1}}],
    "sasrec": [{"epoch": 0, "loss": 7.0, "validation": {"score": 0.1}}],
}


class Page(HTMLParser):
    """Every tag is closed where it was opened; remembers what a browser would fetch, and the text."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_and_says_what_was_measured() -> None:
    page = build(report(), CURVES)
    parsed = Page(page)
    assert parsed.fetched == []
    assert "@import" not in page
    assert "url(http" not in page
    text = re.sub(r"\s+", " ", parsed.text)
    assert "has the held-out item among its first ten for 24.7%. The best baseline, transition counts, has it for 13.6%" in text
    assert "which shows a gain" in text
    for shown in ("0.2468", "0.2368 to 0.2568", "+0.1111", "recency 0.4 (chosen on validation)", "oracle (true taste)", "1 to 3"):
        assert shown in text, shown
    assert "Alarm" not in text
    assert "Against another run" not in text
    assert page.count("<svg") == 3  # accuracy, one division of users (the other has a single group), training
    assert build(report(), CURVES) == page  # equal figures, equal bytes


def test_what_is_wrong_or_asked_for_is_on_the_page() -> None:
    bad = report() | {"alarms": ["only 3 distinct items"], "comparison": {"against": "v0002-<b>", "sentence": "This run is worse.", "rows": []}}
    bad["permuted"]["falls_to_popularity"] = False
    points = [{"label": "1", "recall@10": 0.1, "diversity@10": 0.5}, {"label": "2", "recall@10": 0.09, "diversity@10": 0.6}]
    bad["curves"] = {"curves": {"beam": points[:1], "diverse_beam": points}, "fused": {"beam": points[:1], "diverse_beam": points}}
    page = build(bad, {})
    text = Page(page).text
    for shown in ("only 3 distinct items", "the evaluation leaks", "This run is worse.", "v0002-<b>", "Accuracy and diversity", "diverse beam"):
        assert shown in text, shown
    assert "<b>&lt;" not in page
    assert page.count("<svg") == 3  # accuracy, one division of users, accuracy and diversity


def test_a_missing_curve_is_named(tmp_path: Path) -> None:
    (tmp_path / "curve.jsonl").write_text(json.dumps(CURVES["sasrec"][0]) + "\n")
    assert read_curves({"sasrec": tmp_path}) == {"sasrec": CURVES["sasrec"]}
    with pytest.raises(UGTError, match=f"no training curve at {tmp_path}/nowhere"):
        read_curves({"stage 1": tmp_path / "nowhere"})
