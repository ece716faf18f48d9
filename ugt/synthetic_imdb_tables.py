"""The rows of IMDb's seven tables for a range of titles (or people), at any scale, vectorised.

What several tables must agree on (ids, types, names of titles, who made what) is a pure function of a title's or person's index, by a
hash (`hashed`); so each table is made alone, piece by piece, in constant memory. The rest comes from a generator per (table, piece).

Ids: IMDb sorts its files by the *string*, so tt10000000 stands right after tt1000000. `Ids` lays all strings in that order into
slots, spreads the titles evenly over them with gaps, and so has ids of 7 and 8 digits at every scale.
Sizes, shares and null rates: IMDb's non-commercial data of 2025. Shapes: N rows of the piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ugt import synthetic_imdb_words as words
from ugt.synthetic_imdb_words import CATEGORIES, EPISODES, REGIONS, SEASONS, drawn, gather

TITLES, PEOPLE = 12_000_000, 14_600_000  # at scale 1
TYPES = {  # share of the titles, share of them that have a rating
    "tvEpisode": (0.7700, 0.092),
    "short": (0.0915, 0.140),
    "movie": (0.0612, 0.430),
    "video": (0.0255, 0.200),
    "tvSeries": (0.0240, 0.360),
    "tvMovie": (0.0130, 0.370),
    "tvMiniSeries": (0.0054, 0.330),
    "tvSpecial": (0.0045, 0.280),
    "videoGame": (0.0038, 0.380),
    "tvShort": (0.0011, 0.200),
}
TYPE_NAMES = pl.Series(list(TYPES))
EPISODE, SHORT, MOVIE, TV_MOVIE, SERIES, MINI_SERIES = (list(TYPES).index(t) for t in ("tvEpisode", "short", "movie", "tvMovie", "tvSeries", "tvMiniSeries"))
SALTS = ("tconst", "nconst", "type", "title", "tail", "original", "numbered", "season", "episode", "directors", "writers", "credit", "rated")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ids:
    """Ids of 7 digits, and of 8 digits below `wide` * 10 million, as slots in the order of their strings."""

    prefix: str
    wide: int  # millions

    @property
    def slots(self) -> int:
        return 1_000_000 + (self.wide - 1) * 11_000_000 + (10 - self.wide) * 1_000_000

    def numbers(self, index_N: Ints, total: int, seed: int) -> Ints:
        """The number of each of `total` ids; a greater index has the greater string."""
        first = index_N * (self.slots - 1) // total + 1  # no tt0000000
        room = (index_N + 1) * (self.slots - 1) // total + 1 - first
        slot = first + (hashed(index_N, seed, f"{self.prefix[0]}const") % room.astype(np.uint64)).astype(np.int64)
        middle = slot - 1_000_000
        short, place = 1_000_000 + middle // 11, middle % 11
        end = 1_000_000 + (self.wide - 1) * 11_000_000
        return np.where(slot < 1_000_000, slot, np.where(slot >= end, slot - end + self.wide * 1_000_000, np.where(place == 0, short, short * 10 + place - 1)))

    def text(self, index: Any, total: int, seed: int) -> pl.Series:
        return self.prefix + pl.Series(self.numbers(np.asarray(index, dtype=np.int64), total, seed)).cast(pl.String).str.zfill(7)


TCONST, NCONST = Ids("tt", 4), Ids("nm", 2)


def hashed(index_N: Ints, seed: int, salt: str) -> NDArray[np.uint64]:
    """64 random bits for each index (splitmix64's finaliser; Steele, Lea and Flood, 2014)."""
    start = (seed * 1_000_003 + SALTS.index(salt) + 1) * 0x9E3779B97F4A7C15 % 2**64
    x = index_N.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def uniform(index_N: Ints, seed: int, salt: str) -> NDArray[np.float64]:
    """A number of [0, 1) for each index."""
    return (hashed(index_N, seed, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class World:
    """What all tables share: the sizes, the seed, and what is known of each title and person by its index."""

    scale: float
    seed: int

    @property
    def titles(self) -> int:
        return round(TITLES * self.scale)

    @property
    def people(self) -> int:
        return round(PEOPLE * self.scale)

    def tconst(self, index_N: Any) -> pl.Series:
        return TCONST.text(index_N, self.titles, self.seed)

    def nconst(self, index_N: Any) -> pl.Series:
        return NCONST.text(index_N, self.people, self.seed)

    def types(self, index_N: Ints) -> Ints:
        """Place in TYPES of each title."""
        total = np.cumsum([share for share, _ in TYPES.values()])
        return np.searchsorted(total, uniform(index_N, self.seed, "type") * total[-1], side="right")

    def numbering(self, index_N: Ints) -> tuple[Ints, Ints]:
        """Season and number of an episode: first seasons and first numbers are the most frequent."""
        season = 1 + (SEASONS * uniform(index_N, self.seed, "season") ** 4).astype(np.int64)
        return season, 1 + (EPISODES * uniform(index_N, self.seed, "episode") ** 3).astype(np.int64)

    def names(self, index_N: Ints, types_N: Ints) -> tuple[pl.Series, pl.Series, NDArray[np.bool_]]:
        """Primary and original title, and which titles are called by their number only ("Episode #1.7"), as nearly half of the episodes are."""
        pool = words.titles()
        head = (hashed(index_N, self.seed, "title") % np.uint64(pool.episodes)).astype(np.int64)
        tail = (hashed(index_N, self.seed, "tail") % np.uint64(2 * len(pool.tails))).astype(np.int64)
        numbered = (types_N == EPISODE) & (uniform(index_N, self.seed, "numbered") < 0.45)
        season, number = self.numbering(index_N)
        head = np.where(numbered, pool.episodes + (season - 1) * EPISODES + number - 1, head)
        tail = np.where(numbered | (tail >= len(pool.tails)), 0, tail)
        other = uniform(index_N, self.seed, "original")
        translated = ~numbered & (other < 0.08)
        native = pool.foreign + (other * 1e6).astype(np.int64) % (pool.episodes - pool.foreign)
        ending = gather(pool.tails, tail)
        return (
            gather(pool.heads, head) + ending,
            gather(pool.heads, np.where(translated, native, head)) + gather(pool.tails, np.where(translated, 0, tail)),
            numbered,
        )

    def credited(self, title_N: Ints, category_N: Ints, place_N: Ints) -> Ints:
        """Index of the person who is a title's place-th of a category. Popularity by rank r is r**-.5, as Zipf's law has it in weaker form."""
        rank = (self.people * uniform(title_N * 2048 + category_N * 128 + place_N, self.seed, "credit") ** 2).astype(np.int64)
        return scattered(rank, self.people)  # famous people are spread over all ids


@cache
def series(world: World) -> Ints:
    """Index of every title that can have episodes."""
    found = []
    for start in range(0, world.titles, 1_000_000):
        types_N = world.types(np.arange(start, min(start + 1_000_000, world.titles)))
        found.append(start + np.flatnonzero((types_N == SERIES) | (types_N == MINI_SERIES)))
    return np.concatenate(found)


def scattered(rank_N: Ints, total: int) -> Ints:
    """A permutation of 0..total-1."""
    step = 7_368_787
    while math.gcd(step, total) > 1:
        step += 2
    return rank_N * step % total


def basics(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    n = len(index)
    types = world.types(index)
    primary, original, _ = world.names(index, types)
    lists, adult = words.genre_lists()
    genre = rng.integers(0, len(lists), n)
    year = np.clip(2025 - rng.exponential(17, n).astype(np.int64), 1874, 2025)
    year = np.where(rng.random(n) < 0.008, rng.integers(2026, 2031, n), np.where(rng.random(n) < 2e-5, rng.integers(2031, 2116, n), year))
    no_year = rng.random(n) < 0.12
    runs = (types == SERIES) | (types == MINI_SERIES)
    mean = np.where(types == SHORT, 13, np.where((types == MOVIE) | (types == TV_MOVIE), 93, 40))
    minutes = np.clip(rng.normal(mean, np.where(types == SHORT, 7, 15)), 1, 999).astype(np.int64)
    long = rng.random(n) < 1e-4
    return pl.DataFrame(
        {
            "tconst": world.tconst(index),
            "titleType": gather(TYPE_NAMES, types),
            "primaryTitle": primary,
            "originalTitle": original,
            "isAdult": adult[genre].astype(np.int64),
            "startYear": nulled(year, no_year),
            "endYear": nulled(year + rng.geometric(0.3, n) - 1, no_year | ~runs | (rng.random(n) < 0.55)),
            "runtimeMinutes": nulled(np.where(long, minutes * 60, minutes), rng.random(n) < 0.65),
            "genres": masked(gather(lists, genre), rng.random(n) < 0.045),
        }
    )


def ratings(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    rated = np.array([share for _, share in TYPES.values()])[world.types(index)]
    index = index[uniform(index, world.seed, "rated") < rated]
    n = len(index)
    tenths = np.clip(rng.normal(69, 14, n), 10, 100).round().astype(np.int64)
    marks = pl.Series([f"{tenth / 10:.1f}" for tenth in range(10, 101)])
    votes = np.minimum(5 * (1 - rng.random(n)) ** (-1 / 0.6), 3_100_000).astype(np.int64)
    return pl.DataFrame({"tconst": world.tconst(index), "averageRating": gather(marks, tenths - 10), "numVotes": votes})


def crew(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    columns = {"tconst": world.tconst(index)}
    for name, nulls, more in (("director", 0.43, (0.88, 0.09, 0.02, 0.01)), ("writer", 0.50, (0.55, 0.25, 0.12, 0.05, 0.02, 0.01))):
        u = uniform(index, world.seed, f"{name}s")
        counts = np.where(u < nulls, 0, 1 + np.searchsorted(np.cumsum(more)[:-1], (u - nulls) / (1 - nulls), side="right"))
        rows = np.repeat(np.arange(len(index)), counts)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        people = world.nconst(world.credited(index[rows], np.full(len(rows), list(CATEGORIES).index(name)), place))
        held = np.full((len(index), len(more)), len(rows), dtype=np.int64)
        held[rows, place] = np.arange(len(rows))
        pool = people.append(pl.Series([None], dtype=pl.String))
        parts = [gather(pool, held[:, k]).alias(str(k)) for k in range(len(more))]
        joined = pl.DataFrame(parts).select(pl.concat_str(pl.all(), separator=",", ignore_nulls=True).alias(name)).to_series()
        columns[f"{name}s"] = masked(joined, counts == 0)
    return pl.DataFrame(columns)


def principals(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    counts = np.minimum(rng.negative_binomial(4, 4 / 11.7, len(index)), 99)
    rows = np.repeat(np.arange(len(index)), counts)
    n = len(rows)
    mixed = np.sort(rows * 16 + drawn(rng, [share for share, _, _ in CATEGORIES.values()], n))  # the cast first, as IMDb has it
    category = mixed & 15
    new = np.r_[True, mixed[1:] != mixed[:-1]][:n]
    place = np.arange(n) - np.maximum.accumulate(np.where(new, np.arange(n), 0))
    pool, first, sizes = words.jobs()
    played, selves = words.characters()
    part = np.where(category == list(CATEGORIES).index("self"), rng.integers(selves, len(played), n), rng.integers(1, selves, n))
    silent = ~np.array([cast for _, cast, _ in CATEGORIES.values()])[category] | (rng.random(n) < 0.12)
    return pl.DataFrame(
        {
            "tconst": gather(world.tconst(index), rows),
            "ordering": np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts) + 1,
            "nconst": world.nconst(world.credited(index[rows], category, place)),
            "category": gather(pl.Series(list(CATEGORIES)), category),
            "job": gather(pool, first[category] + rng.integers(0, 1 << 30, n) % sizes[category]),
            "characters": gather(played, np.where(silent, 0, part)),
        }
    )


def akas(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    types = world.types(index)
    _, original, numbered = world.names(index, types)
    pool = words.titles()
    season, number = world.numbering(index)
    counts = 1 + np.minimum(rng.negative_binomial(1.5, 1.5 / 4.9, len(index)), 150)
    rows = np.repeat(np.arange(len(index)), counts)
    n = len(rows)
    ordering = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    is_first = ordering == 1
    region = drawn(rng, [share for share, _, _ in REGIONS.values()], n)
    word = np.array([place for _, _, place in REGIONS.values()])[region]
    local = pool.episodes + (word * SEASONS + season[rows] - 1) * EPISODES + number[rows] - 1
    other = np.where(numbered[rows], local, rng.integers(0, pool.episodes, n))
    as_original = is_first | (rng.random(n) < 0.45)
    # one pool of the original titles of this piece and the alternative ones, so that a title is gathered once
    title = gather(pl.concat([original.rename(""), pool.heads.rename("")]), np.where(as_original, rows, len(original) + other))
    kinds = pl.Series(["original", "imdbDisplay", "alternative", "working", "tv", "dvd", "festival", "video", None], dtype=pl.String)
    kind = np.where(is_first, 0, 1 + drawn(rng, [82, 4, 1.5, 0.5, 0.3, 0.3, 0.2, 11], n))
    languages = gather(pl.Series([language for _, language, _ in REGIONS.values()]), region)
    return pl.DataFrame(
        {
            "titleId": gather(world.tconst(index), rows),
            "ordering": ordering,
            "title": title,
            "region": masked(gather(pl.Series(list(REGIONS)), region), is_first),
            "language": masked(languages, is_first | (rng.random(n) < 0.55)),
            "types": gather(kinds, kind),
            "attributes": masked(gather(pl.Series(words.ATTRIBUTES), rng.integers(0, len(words.ATTRIBUTES), n)), is_first | (rng.random(n) < 0.98)),
            "isOriginalTitle": is_first.astype(np.int64),
        }
    )


def episodes(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    index = index[world.types(index) == EPISODE]
    n = len(index)
    parents = series(world)
    parent = parents[scattered((len(parents) * rng.random(n) ** 2.5).astype(np.int64), len(parents))]  # a few series have thousands of episodes
    season, number = world.numbering(index)
    unknown = rng.random(n) < 0.2
    return pl.DataFrame(
        {"tconst": world.tconst(index), "parentTconst": world.tconst(parent), "seasonNumber": nulled(season, unknown), "episodeNumber": nulled(number, unknown)}
    )


def people(world: World, start: int, end: int, rng: np.random.Generator) -> pl.DataFrame:
    index = np.arange(start, end)
    n = len(index)
    first, family = words.names()
    born = np.clip(rng.normal(1957, 25, n), 1820, 2020).astype(np.int64)
    alive, unknown = rng.random(n) < 0.65, rng.random(n) < 0.955
    known = rng.choice(5, n, p=[0.11, 0.45, 0.2, 0.1, 0.14])
    titles = [masked(world.tconst(rng.integers(0, world.titles, n)), known <= k).alias(str(k)) for k in range(4)]
    joined = pl.DataFrame(titles).select(pl.concat_str(pl.all(), separator=",", ignore_nulls=True).alias("known")).to_series()
    return pl.DataFrame(
        {
            "nconst": world.nconst(index),
            "primaryName": gather(first, rng.integers(0, len(first), n)) + " " + gather(family, rng.integers(0, len(family), n)),
            "birthYear": nulled(born, unknown),
            "deathYear": nulled(np.minimum(born + rng.integers(30, 95, n), 2025), unknown | alive),
            "primaryProfession": masked(gather(words.professions(), rng.integers(0, 4096, n)), rng.random(n) < 0.2),
            "knownForTitles": masked(joined, known == 0),
        }
    )


def nulled(values_N: Ints, nulls_N: NDArray[np.bool_]) -> pl.Series:
    return masked(pl.Series(values_N), nulls_N)


def masked(values: pl.Series, nulls_N: NDArray[np.bool_]) -> pl.Series:
    """The values with nulls where the mask is true."""
    return pl.select(pl.when(pl.lit(pl.Series(~nulls_N))).then(pl.lit(values))).to_series()


TABLES: dict[str, Callable[[World, int, int, np.random.Generator], pl.DataFrame]] = {
    "title.basics": basics,
    "title.ratings": ratings,
    "title.crew": crew,
    "title.principals": principals,
    "title.akas": akas,
    "title.episode": episodes,
    "name.basics": people,
}
