"""The generator: genuine formats, the same bytes twice, and a task that is learnable but not trivial."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ugt import synthetic_catalogue, synthetic_taste
from ugt.schema import UGTError
from ugt.synthetic import IMDB_HEADERS, START, SampleConfig, oracle_recall, write_sample
from ugt.synthetic_taste import Rows

SMALL = SampleConfig(titles=300, users=200, events=5_000, seed=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("sample")
    return folder, write_sample(SMALL, folder)


@pytest.fixture(scope="module")
def generated() -> synthetic_taste.Events:
    return synthetic_taste.generate(synthetic_catalogue.build(4_000, 0).taste, 2_000, 100_000, 0, START)


def imdb(folder: Path, name: str) -> list[list[str]]:
    return [line.split("\t") for line in gzip.open(folder / "imdb" / f"{name}.tsv.gz", "rt", encoding="utf-8", newline="\n").read().splitlines()]


def movielens(folder: Path, name: str) -> list[list[str]]:
    with open(folder / "movielens" / f"{name}.csv", encoding="utf-8", newline="") as f:
        return list(csv.reader(f))


def test_the_imdb_files_have_imdbs_columns_and_nulls(small: tuple[Path, dict]) -> None:
    folder, _ = small
    for name, header in IMDB_HEADERS.items():
        rows = imdb(folder, name)
        assert rows[0] == header.split()
        assert {len(row) for row in rows} == {len(rows[0])}
        assert any("\\N" in row for row in rows) or name in ("title.ratings", "title.episode")
    kinds = {row[1] for row in imdb(folder, "title.basics")[1:]}
    assert {"movie", "tvSeries", "tvEpisode", "videoGame"} <= kinds


def test_the_movielens_files_have_movielens_form(small: tuple[Path, dict]) -> None:
    folder, _ = small
    assert [movielens(folder, n)[0] for n in ("ratings", "movies", "links", "tags")] == [
        ["userId", "movieId", "rating", "timestamp"],
        ["movieId", "title", "genres"],
        ["movieId", "imdbId", "tmdbId"],
        ["userId", "movieId", "tag", "timestamp"],
    ]
    titles = [row[1] for row in movielens(folder, "movies")[1:]]
    assert any(", The (" in t for t in titles)
    assert all(len(row[1]) == 7 for row in movielens(folder, "links")[1:])
    assert {float(row[2]) for row in movielens(folder, "ratings")[1:]} <= set(np.arange(1, 11) / 2)


def test_no_user_sees_an_item_twice_and_time_only_grows(small: tuple[Path, dict]) -> None:
    folder, figures = small
    per_user: dict[str, list[tuple[int, str]]] = {}
    for user, movie, _, time in movielens(folder, "ratings")[1:]:
        per_user.setdefault(user, []).append((int(time), movie))
    assert len(per_user) == SMALL.users == figures["users"]
    assert sum(map(len, per_user.values())) == SMALL.events
    for events in per_user.values():
        assert len({m for _, m in events}) == len(events) == len({t for t, _ in events})


def test_the_truth_never_holds_what_the_user_has_seen_before(small: tuple[Path, dict]) -> None:
    folder, figures = small
    seen: dict[str, list[tuple[int, str]]] = {}
    for user, movie, _, time in movielens(folder, "ratings")[1:]:
        seen.setdefault(user, []).append((int(time), movie))
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    hits = 0
    for row in truth:
        *before, (_, target) = sorted(seen[row["user_id"]])
        assert not {m for _, m in before} & set(row["item_ids"])
        assert len(row["item_ids"]) == len(set(row["item_ids"])) == 50
        hits += target in row["item_ids"][:10]
    assert hits / len(truth) == pytest.approx(figures["oracle_recall@10"], abs=1e-3)


def test_equal_seeds_give_equal_bytes(small: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = small
    write_sample(SMALL, tmp_path)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        other = tmp_path / path.relative_to(folder)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest(), path.name


def test_titles_are_distinct_and_hold_quotes_and_accents(small: tuple[Path, dict]) -> None:
    catalogue = synthetic_catalogue.build(1_000, 1)
    names = [t.title for t in catalogue.titles]
    assert len({(t.title, t.year) for t in catalogue.titles}) > 0.99 * len(names)
    assert any('"' in n for n in names)
    assert any(not t.original.isascii() for t in catalogue.titles)
    assert len({t.tconst for t in catalogue.titles}) == 1_000


def test_the_oracle_probability_is_the_law_the_events_are_drawn_from() -> None:
    """Draws against the closed form on a small catalogue: total variation of 40,000 draws over 60 items stays near sqrt(60 / 40,000)."""
    taste = synthetic_catalogue.build(60, 2).taste
    n = 40_000
    rng = np.random.default_rng(0)
    seen = np.array([[5, 9, 11]], np.int32)
    last, echo, niche = np.array([11], np.int32), np.array([9], np.int32), np.array([1])
    favourites, chances = np.array([[0, 1, 2, 3]]), np.array([[0.4, 0.3, 0.2, 0.1]])
    expected = synthetic_taste.next_probabilities(taste, seen, last, echo, niche, favourites, chances)[0]
    change = rng.random(n) < synthetic_taste.SWITCH
    niches = np.where(change, favourites[0, rng.choice(4, size=n, p=chances[0])], 1)
    drawn, _ = synthetic_taste._draw(taste, np.repeat(seen, n, 0), np.repeat(last, n), np.repeat(echo, n), niches, rng)
    observed = np.bincount(drawn, minlength=60) / n
    assert expected.sum() == pytest.approx(1.0)
    assert np.abs(observed - expected).sum() / 2 < 0.02
    assert observed[[5, 9, 11]].sum() == 0


def test_rows_draw_only_their_own_items() -> None:
    rows = Rows.build(3, np.array([0, 0, 2, 2, 2]), np.array([1, 4, 0, 3, 3]), np.array([1.0, 3.0, 1.0, 1.0, 2.0]))
    rng = np.random.default_rng(1)
    assert set(rows.draw(np.zeros(2_000, int), rng).tolist()) == {1, 4}
    drawn = rows.draw(np.full(20_000, 2), rng)
    assert (drawn == 3).mean() == pytest.approx(0.75, abs=0.02)
    assert rows.sizes.tolist() == [2, 0, 2]


def test_order_carries_the_signal_at_the_default_size(generated: synthetic_taste.Events) -> None:
    """A first-order Markov chain beats popularity threefold on the leave-one-out test, and the oracle leaves room above it."""
    events, n = generated, 4_000
    ends = events.offsets[1:]
    target, last = events.items[ends - 1], events.items[ends - 2]
    train = np.ones(len(events.items), bool)
    train[np.concatenate([ends - 1, ends - 2])] = False
    popularity = np.bincount(events.items[train], minlength=n).astype(float)
    chain = np.zeros((n, n), np.float32)
    user = np.repeat(np.arange(len(ends)), np.diff(events.offsets))
    pairs = np.flatnonzero(train[1:] & (user[1:] == user[:-1]))
    np.add.at(chain, (events.items[pairs], events.items[pairs + 1]), 1.0)

    def recall(scores: np.ndarray) -> float:
        hits = 0
        for u, end in enumerate(ends):
            row = scores[u].copy()
            row[events.items[events.offsets[u] : end - 1]] = -1
            hits += int((row > row[target[u]]).sum() < 10)
        return hits / len(ends)

    by_popularity = recall(np.broadcast_to(popularity, (len(ends), n)))
    by_chain = recall(chain[last] + 1e-6 * popularity)
    oracle = oracle_recall(events)
    assert 0.25 <= oracle <= 0.42
    assert 0.03 <= by_popularity <= 0.07
    assert by_chain > 3 * by_popularity
    assert by_chain < 0.75 * oracle


def test_a_sample_too_small_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="at least 50 titles"):
        write_sample(SampleConfig(titles=3, users=2, events=10), tmp_path)
