"""The one generator of catalogues and events, in IMDb's and MovieLens' genuine file formats, at any scale.

`write_sample` makes a catalogue and its events as the files one would download; `write_events_for` makes events over a real
catalogue; `write_imdb_at_scale` makes IMDb's files at IMDb's size, for benchmarks of the ETL (`synthetic_imdb`). The taste model is in
`synthetic_taste`, the catalogue in `synthetic_catalogue`. Everything follows from the seed.

Tuned (measured over seeds 0, 1, 2 at the default size, leave-one-out, seen items removed, recall@10): oracle .39,
popularity .045-.06, item-kNN .09, a first-order Markov chain .23-.24. So order and recency carry the signal, as they do in
session data, and 100,000 events are enough to learn it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ugt.artifacts import EVENTS, PREDICTIONS, USERS
from ugt.schema import Config, UGTError

if TYPE_CHECKING:
    from ugt.synthetic_catalogue import Catalogue
    from ugt.synthetic_taste import Events, Taste

Credit = tuple[int, str, str | None, str | None]  # person, category, job, characters
START = 1_420_070_400  # 2015-01-01; the generated films end in 2014
TRUTH = "truth.parquet"
IMDB_HEADERS = {
    "title.basics": "tconst titleType primaryTitle originalTitle isAdult startYear endYear runtimeMinutes genres",
    "title.ratings": "tconst averageRating numVotes",
    "title.crew": "tconst directors writers",
    "title.principals": "tconst ordering nconst category job characters",
    "title.akas": "titleId ordering title region language types attributes isOriginalTitle",
    "title.episode": "tconst parentTconst seasonNumber episodeNumber",
    "name.basics": "nconst primaryName birthYear deathYear primaryProfession knownForTitles",
}


class SampleConfig(Config):
    titles: int = 4_000
    users: int = 2_000
    events: int = 100_000
    seed: int = 0


def write_sample(config: SampleConfig, out_dir: Path) -> dict[str, Any]:
    """`imdb/*.tsv.gz`, `movielens/*.csv` and `truth.parquet` (the oracle's top 50 at each user's last event, seen items removed).

    Returns the figures, among them `oracle_recall@10`: the ceiling of any model on the leave-one-out test.
    Raises UGTError if the sizes don't make a data set.
    """
    from ugt import synthetic_catalogue, synthetic_taste

    _check(config)
    catalogue = synthetic_catalogue.build(config.titles, config.seed)
    events = synthetic_taste.generate(catalogue.taste, config.users, config.events, config.seed, START)
    rng = np.random.default_rng([config.seed, 5])
    movie_ids = np.cumsum(rng.integers(1, 4, config.titles))  # MovieLens' ids have gaps, and their own order
    movie_ids = movie_ids[rng.permutation(config.titles)]
    write_imdb(catalogue, Path(out_dir) / "imdb", config.seed)
    write_movielens(catalogue, events, movie_ids, Path(out_dir) / "movielens", config.seed)
    ids = [str(i) for i in movie_ids]
    user_ids = [str(u + 1) for u in range(len(events.offsets) - 1)]
    write_truth(events, ids, user_ids, Path(out_dir))
    return {"generated": True, "titles": config.titles, "people": len(catalogue.people), "niches": len(catalogue.niches), **_figures(events, catalogue.taste)}


def write_events_for(items: pa.Table, credits: pa.Table, config: SampleConfig, out_dir: Path) -> dict[str, Any]:
    """Users and events over a real catalogue: `users/`, `events/` (canonical tables) and `truth.parquet` in `out_dir`.

    items, credits: tables of `ugt.artifacts`. Popularity follows the votes, niches are genre x era, follow-ups the director's and
    the lead's films. Raises UGTError if the catalogue is empty.
    """
    from ugt import synthetic_taste
    from ugt.synthetic_real import taste_of

    if items.num_rows < 10:
        raise UGTError(f"the catalogue has {items.num_rows} items; generated events need at least 10. Give a folder with more titles (--data-dir).")
    _check(config.model_copy(update={"titles": items.num_rows}))
    taste = taste_of(items, credits, config.seed)
    events = synthetic_taste.generate(taste, config.users, config.events, config.seed, START)
    users = len(events.offsets) - 1
    user_of_event = np.repeat(np.arange(users), np.diff(events.offsets))
    ids = items["item_id"].to_pylist()
    width = len(str(users))
    user_ids = [f"u{u + 1:0{width}d}" for u in range(users)]
    values = _ratings(events, taste.n_items, np.random.default_rng([config.seed, 17]))
    table = pa.table(
        {
            "event_id": [f"generated-{i}" for i in range(len(events.items))],
            "user_id": pa.array(user_ids).take(pa.array(user_of_event)),
            "item_id": pa.array(ids).take(pa.array(events.items)),
            "item_index": events.items,
            "action": pa.array(["rate"]).take(pa.array(np.zeros(len(events.items), np.int64))),
            "value": values.astype(np.float32),
            "timestamp": events.timestamps,
            "order": np.arange(len(events.items)),
        },
        schema=EVENTS,
    )
    from ugt.artifacts import write_table

    write_table(table, Path(out_dir) / "events")
    write_table(
        pa.table({"user_id": user_ids, "gender": [None] * users, "age": [None] * users, "occupation": [None] * users}, schema=USERS), Path(out_dir) / "users"
    )
    write_truth(events, ids, user_ids, Path(out_dir))
    return {"generated_events": True, **_figures(events, taste)}


def write_imdb_at_scale(scale: float, seed: int, out_dir: Path, processes: int = 2) -> dict[str, Any]:
    """The seven files at `scale` times IMDb's size, with 0.1% broken rows; returns rows and broken rows by kind, per file (`synthetic_imdb`)."""
    from ugt import synthetic_imdb

    return synthetic_imdb.write_at_scale(scale, seed, out_dir, processes)


def write_truth(events: Events, item_ids: Sequence[str], user_ids: Sequence[str], out_dir: Path) -> None:
    """The oracle's ranking as a predictions file (`head` oracle, `filtered` true); only users the oracle was asked about."""
    rows = [[item_ids[i] for i in ranked if i >= 0] for ranked in events.truth_UT[: events.oracle_users].tolist()]
    n = len(rows)
    table = pa.table({"user_id": list(user_ids[:n]), "head": ["oracle"] * n, "filtered": [True] * n, "item_ids": rows}, schema=PREDICTIONS)
    pq.write_table(table, out_dir / TRUTH, compression="zstd")


def oracle_recall(events: Events, k: int = 10) -> float:
    """Share of the oracle's users whose last item is among its first k."""
    n = events.oracle_users
    target = events.items[events.offsets[1 : n + 1] - 1]
    return float((events.truth_UT[:n, :k] == target[:, None]).any(axis=1).mean())


def write_imdb(catalogue: Catalogue, folder: Path, seed: int) -> None:
    """The seven TSVs of IMDb's non-commercial data sets, with its nulls, a few games and the episodes of the series."""
    from ugt.synthetic_words import LANGUAGE

    rng = np.random.default_rng([seed, 19])
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[list[Any]]] = {name: [] for name in IMDB_HEADERS}
    known: dict[int, list[str]] = {}
    for title in catalogue.titles:
        rows["title.basics"].append(
            [title.tconst, title.kind, title.title, title.original, 0, title.year, title.end_year, title.runtime, ",".join(title.genres) or None]
        )
        if rng.random() > 0.03:
            rows["title.ratings"].append([title.tconst, f"{title.rating:.1f}", title.votes])
        names = [",".join(catalogue.people[p].nconst for p in group) or None for group in (title.directors, title.writers)]
        rows["title.crew"].append([title.tconst, *names])
        cast: list[Credit] = [(p, catalogue.people[p].profession, None, f'["{_character(rng)}"]' if rng.random() > 0.1 else None) for p in title.actors]
        crew: list[Credit] = [(p, "director", None, None) for p in title.directors] + [(p, "writer", "written by", None) for p in title.writers]
        for ordering, (person, category, job, characters) in enumerate(cast + crew, start=1):
            rows["title.principals"].append([title.tconst, ordering, catalogue.people[person].nconst, category, job, characters])
            known.setdefault(person, []).append(title.tconst)
        native = LANGUAGE[title.country] if title.original != title.title else None
        rows["title.akas"].append([title.tconst, 1, title.original, None, None, "original", None, 1])
        rows["title.akas"].append([title.tconst, 2, title.original, title.country, native, "imdbDisplay", None, 0])
        if title.original != title.title:
            rows["title.akas"].append([title.tconst, 3, title.title, "XWW", "en", "imdbDisplay", None, 0])
    _episodes_and_games(catalogue, rows, rng)
    for index, who in enumerate(catalogue.people):
        professions = who.profession if rng.random() > 0.03 else None
        rows["name.basics"].append([who.nconst, who.name, who.birth, who.death, professions, ",".join(known.get(index, [])[:4]) or None])
    for name, table in rows.items():
        write_tsv(folder / f"{name}.tsv.gz", IMDB_HEADERS[name].split(), table)


def write_tsv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """IMDb's dialect: tabs, no quoting, `\\N` for null, UTF-8; gzip without a time, so that equal data is equal bytes."""
    lines = ["\t".join(header), *("\t".join("\\N" if v is None else str(v) for v in row) for row in rows)]
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=4) as f:
        f.write(("\n".join(lines) + "\n").encode("utf-8"))


def write_movielens(catalogue: Catalogue, events: Events, movie_ids: NDArray[np.int64], folder: Path, seed: int) -> None:
    """ratings, movies, links and tags as MovieLens "latest" has them: CRLF, `Title, The (Year)`, zero-padded imdbId."""
    from ugt.synthetic_words import STYLES

    rng = np.random.default_rng([seed, 23])
    folder.mkdir(parents=True, exist_ok=True)
    order = np.argsort(movie_ids)
    movies, links, tags = [], [], []
    for i in order.tolist():
        title = catalogue.titles[i]
        movies.append(
            [
                movie_ids[i],
                movielens_title(title.title, title.year if rng.random() > 0.005 else None),
                "|".join(_movielens_genre(g) for g in title.genres) or "(no genres listed)",
            ]
        )
        links.append([movie_ids[i], title.tconst[2:], int(rng.integers(100, 900_000)) if rng.random() > 0.002 else ""])
    users = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets)) + 1
    values = _ratings(events, len(catalogue.titles), np.random.default_rng([seed, 17]))
    for at in np.flatnonzero(rng.random(len(events.items)) < 0.03).tolist():
        words = STYLES[catalogue.niches[catalogue.titles[events.items[at]].niche][0]][4]
        tags.append([users[at], movie_ids[events.items[at]], words[rng.integers(len(words))], events.timestamps[at] + 60])
    # MovieLens sorts by user and movie, not by time: a reader that trusts the order of the file fails here too
    by_movie = np.lexsort((movie_ids[events.items], users))
    ratings = [
        f"{u},{m},{v:.1f},{t}"
        for u, m, v, t in zip(users[by_movie], movie_ids[events.items][by_movie], values[by_movie], events.timestamps[by_movie], strict=True)
    ]
    _write_lines(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *ratings])
    write_csv(folder / "movies.csv", ["movieId", "title", "genres"], movies)
    write_csv(folder / "links.csv", ["movieId", "imdbId", "tmdbId"], links)
    write_csv(folder / "tags.csv", ["userId", "movieId", "tag", "timestamp"], tags)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """MovieLens' dialect: a field with a comma or a quote is quoted, quotes are doubled."""

    def field(value: Any) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text

    _write_lines(path, [",".join(header), *(",".join(field(v) for v in row) for row in rows)])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8"))


def movielens_title(title: str, year: int | None) -> str:
    """`The Last Signal`, 1994 -> `Last Signal, The (1994)`."""
    for article in ("The", "A", "An"):
        if title.startswith(article + " "):
            title = f"{title[len(article) + 1 :]}, {article}"
            break
    return title if year is None else f"{title} ({year})"


def _movielens_genre(genre: str) -> str:
    return {"Family": "Children", "Music": "Musical"}.get(genre, genre)


def _ratings(events: Events, n_items: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Stars .5-5: the item's quality, the user's habit, a bonus when taste led there, noise."""
    users = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    raw = 3.0 + rng.normal(0, 0.4, n_items)[events.items] + rng.normal(0, 0.4, users[-1] + 1)[users] + 0.6 * events.liked + rng.normal(0, 0.6, len(users))
    return np.clip(np.round(raw * 2) / 2, 0.5, 5.0)


def _character(rng: np.random.Generator) -> str:
    names = (
        "Jack",
        "Mrs. Doyle",
        "Sgt. Pike",
        "Anna",
        "The Stranger",
        "Dr. Weiss",
        "Old Tom",
        "Marguerite",
        "Self",
        "Capt. Rhys",
        "Lou 'Lucky' Farrow",
        "Inspector Brandt",
    )
    return str(names[rng.integers(len(names))])


def _episodes_and_games(catalogue: Catalogue, rows: dict[str, list[list[Any]]], rng: np.random.Generator) -> None:
    """What a loader must leave out: single episodes of the series, and a few video games."""
    number = 9_000_000
    for title in catalogue.titles:
        if title.kind != "tvSeries":
            continue
        for episode in range(1, int(rng.integers(3, 9))):
            number += 1
            name = f"Episode #1.{episode}"
            rows["title.basics"].append([f"tt{number}", "tvEpisode", name, name, 0, title.year, None, title.runtime, ",".join(title.genres) or None])
            rows["title.crew"].append([f"tt{number}", None, None])
            rows["title.episode"].append([f"tt{number}", title.tconst, 1, episode])
    for title in catalogue.titles[:: max(1, len(catalogue.titles) // 12)]:
        number += 1
        name = f"{title.title}: The Game"
        rows["title.basics"].append([f"tt{number}", "videoGame", name, name, 0, title.year + 1, None, None, "Action"])


def _check(config: SampleConfig) -> None:
    if config.titles < 50 or config.users < 2 or config.events < 5 * config.users:
        raise UGTError(
            f"a sample of {config.titles} titles, {config.users} users and {config.events} events is too small: "
            "at least 50 titles, 2 users and 5 events per user are needed. Change sample.* in the settings."
        )


def _figures(events: Events, taste: Taste) -> dict[str, Any]:
    users = len(events.offsets) - 1
    return {
        "users": users,
        "events": len(events.items),
        "density": round(len(events.items) / (users * taste.n_items), 6),
        "oracle_recall@10": round(oracle_recall(events), 4),
        "oracle_users": events.oracle_users,
    }
