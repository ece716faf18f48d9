"""The generated catalogue: titles, franchises, people, genres, popularity, and the taste model that belongs to them.

An item lives in a niche (style x era). A niche has its own directors and actors, so genres, era and people all tell its items
apart; a franchise stays in its niche and keeps its director and lead. Popularity is Zipf's law over a random order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ugt.synthetic_taste import Rows, Taste
from ugt.synthetic_words import ERAS, NATIVE, PEOPLE, STYLES, SUBTITLES

ZIPF = 0.88
ITEMS_PER_NICHE = 150
ROMAN = ("", "", "II", "III", "IV", "V", "VI", "VII")


@dataclass
class Title:
    """One generated title. `people` are indices into the catalogue's list of names."""

    tconst: str
    kind: str
    title: str
    original: str
    year: int
    end_year: int | None
    runtime: int | None
    genres: tuple[str, ...]
    country: str
    directors: list[int]
    writers: list[int]
    actors: list[int]
    niche: int
    franchise: int
    part: int
    rating: float
    votes: int


@dataclass
class Person:
    nconst: str
    name: str
    birth: int | None
    death: int | None
    country: str
    profession: str


@dataclass
class Catalogue:
    titles: list[Title]
    people: list[Person]
    niches: list[tuple[str, int]]  # (style, era)
    taste: Taste


def build(n: int, seed: int) -> Catalogue:
    """`n` titles in order of tconst. Equal arguments give equal catalogues on every machine."""
    rng = np.random.default_rng([seed, 3])
    everything = [(style, era) for era in range(len(ERAS)) for style in STYLES]
    count = int(np.clip(round(n / ITEMS_PER_NICHE), 6, len(everything)))
    niches = [everything[i] for i in sorted(rng.permutation(len(everything))[:count])]
    niche_weight = rng.permutation((np.arange(count) + 3.0) ** -0.5)
    sizes = rng.multinomial(n, niche_weight / niche_weight.sum())
    people: list[Person] = []
    used: dict[str, int] = {}
    titles: list[Title] = []
    franchise = 0
    for k, (style, era) in enumerate(niches):
        size = int(sizes[k])
        home = str(rng.choice(list(PEOPLE), p=[0.42, 0.14, 0.12, 0.06, 0.07, 0.06, 0.08, 0.05]))
        directors = [_person(people, rng, home, "director", ERAS[era]) for _ in range(max(2, size // 7))]
        writers = [_person(people, rng, home, "writer", ERAS[era]) for _ in range(max(2, size // 6))]
        actors = [_person(people, rng, home, "actor" if rng.random() < 0.5 else "actress", ERAS[era]) for _ in range(max(5, size // 3))]
        left = size
        while left > 0:
            parts = min(left, int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.62, 0.12, 0.12, 0.08, 0.04, 0.02])))
            left -= parts
            titles += _franchise(rng, style, era, k, franchise, parts, home, directors, writers, actors, used)
            franchise += 1
    order = rng.permutation(n)
    titles = [titles[i] for i in order]
    by_year = sorted(range(n), key=lambda i: (titles[i].year, i))  # IMDb's numbers grow with the years, roughly
    number = 20_000
    for i in by_year:
        number += int(rng.integers(1, 60))
        titles[i].tconst = f"tt{number:07d}"
    titles.sort(key=lambda t: (len(t.tconst), t.tconst))
    popularity = _popularity(titles, rng)
    for i, title in enumerate(titles):
        quality = float(np.clip(rng.normal(6.6, 0.9), 2.0, 9.4))
        title.rating = round(quality, 1)
        title.votes = int(5 + popularity[i] * 4e5 * n / 4000 * rng.lognormal(0, 0.3))
    return Catalogue(titles=titles, people=people, niches=niches, taste=_taste(titles, popularity, niche_weight))


def _person(people: list[Person], rng: np.random.Generator, home: str, profession: str, era: tuple[int, int]) -> int:
    country = home if rng.random() < 0.75 else str(rng.choice(list(PEOPLE)))
    first, family = PEOPLE[country]
    name = f"{first[rng.integers(len(first))]} {family[rng.integers(len(family))]}"
    if rng.random() < 0.35:
        name = name.replace(" ", f" {'ABCDEFGHJKLMNPRSTW'[rng.integers(18)]}. ", 1)
    birth = int(era[0] - rng.integers(18, 45))
    dead = birth < 1940 and rng.random() < 0.8
    people.append(
        Person(
            f"nm{1_000 + 7 * len(people):07d}",
            name,
            None if rng.random() < 0.04 else birth,
            min(birth + int(rng.integers(55, 96)), 2020) if dead else None,
            country,
            profession,
        )
    )
    return len(people) - 1


def _franchise(
    rng: np.random.Generator,
    style: str,
    era: int,
    niche: int,
    number: int,
    parts: int,
    home: str,
    directors: list[int],
    writers: list[int],
    actors: list[int],
    used: dict[str, int],
) -> list[Title]:
    """One title, or the parts of a series of films, in order of release."""
    genres, *_ = STYLES[style]
    name = _name(rng, style, used)
    country = home if rng.random() < 0.8 else str(rng.choice(list(PEOPLE)))
    low, high = ERAS[era]
    year = int(rng.integers(low, high + 1)) - 3 * (parts - 1)
    director, writer, lead = (int(rng.choice(pool)) for pool in (directors, writers, actors))
    roman, serial = rng.random() < 0.5, parts == 1 and style != "documentary" and rng.random() < 0.07
    kind = "tvSeries" if serial else str(rng.choice(["movie", "tvMovie", "short", "video"], p=[0.93, 0.03, 0.02, 0.02])) if parts == 1 else "movie"
    kept = tuple(g for i, g in enumerate(genres) if i == 0 or rng.random() < 0.85)
    made: list[Title] = []
    for part in range(1, parts + 1):
        title = (
            name
            if part == 1
            else f"{name}: {SUBTITLES[rng.integers(len(SUBTITLES))]}"
            if part > 2 and not roman
            else f"{name} {ROMAN[part]}"
            if roman
            else f"{name} {part}"
        )
        if any(t.title == title for t in made):
            title = f"{name} {part}"
        original = _native(rng, country) if part == 1 and country in NATIVE and rng.random() < 0.75 else title
        if part > 1 and made[0].original != made[0].title:
            original = f"{made[0].original} {part}"
        cast = [lead] + [int(a) for a in rng.choice(actors, size=min(len(actors), int(rng.integers(2, 6))), replace=False) if a != lead]
        same = rng.random() < 0.8
        short = kind == "short"
        made.append(
            Title(
                tconst="",
                kind=kind,
                title=title,
                original=original,
                year=year,
                end_year=min(year + int(rng.integers(1, 9)), 2014) if serial else None,
                runtime=None
                if rng.random() < 0.03
                else int(rng.integers(5, 35))
                if short
                else int(rng.integers(22, 60))
                if serial
                else int(np.clip(rng.normal(104, 16), 62, 190)),
                genres=tuple(sorted({*kept, "Short"})) if short else () if rng.random() < 0.02 else tuple(sorted(kept)),
                country=country,
                directors=[director if same else int(rng.choice(directors))],
                writers=[] if rng.random() < 0.04 else [writer],
                actors=cast,
                niche=niche,
                franchise=number,
                part=part,
                rating=0.0,
                votes=0,
            )
        )
        year += int(rng.integers(1, 4))
    return made


def _name(rng: np.random.Generator, style: str, used: dict[str, int]) -> str:
    """A title in the style's words. Past the combinations of words, a name is told apart by a place or a number, as remakes are."""
    _, adjectives, nouns, places, _ = STYLES[style]
    adjective, noun, place = (str(words[rng.integers(len(words))]) for words in (adjectives, nouns, places))
    other = str(nouns[rng.integers(len(nouns))])
    if style == "documentary":
        patterns = [f"{adjective} {noun}", f"{adjective} {noun}: {place}", f"{place}, {1900 + int(rng.integers(20, 99))}", f"Letters from {place}"]
    else:
        patterns = [
            f"The {adjective} {noun}",
            f"{adjective} {noun}",
            f"The {noun} of {place}",
            f"{noun} in {place}",
            f"A {noun} for {place}" if noun[0] not in "AEIOU" else f"An {noun} for {place}",
            f"The {noun} and the {other}" if noun != other else f"The {noun}",
            f"{adjective} Nights, {adjectives[rng.integers(len(adjectives))]} Days",
            f'The "{noun}" Affair',
            f"{noun}, {place}",
        ]
    weights = np.array([5, 5, 3, 3, 2, 2, 1, 0.5, 1][: len(patterns)], float)
    name = str(rng.choice(patterns, p=weights / weights.sum()))
    used[name] = used.get(name, 0) + 1
    if used[name] == 1:
        return name
    longer = f"{name}: {place}" if ":" not in name and place not in name else f"{name}, Part {used[name]}"
    used[longer] = used.get(longer, 0) + 1
    return longer if used[longer] == 1 else f"{name} No. {used[name]}"


def _native(rng: np.random.Generator, country: str) -> str:
    starts, ends, places = NATIVE[country]
    gap = "" if country == "JP" else " "
    end = ends[rng.integers(len(ends))] if rng.random() < 0.7 else places[rng.integers(len(places))]
    return f"{starts[rng.integers(len(starts))]}{gap}{end}"


def _popularity(titles: list[Title], rng: np.random.Generator) -> NDArray[np.float64]:
    """Zipf's law; the later parts of a franchise lose a little to the first."""
    base = {}
    rank = rng.permutation(max(t.franchise for t in titles) + 1)
    for title in titles:
        base[title.franchise] = (rank[title.franchise] + 4.0) ** -ZIPF
    weight = np.array([base[t.franchise] * 0.85 ** (t.part - 1) for t in titles])
    return weight / weight.sum()


def _taste(titles: list[Title], popularity: NDArray[np.float64], niche_weight: NDArray[np.float64]) -> Taste:
    n = len(titles)
    niche = np.array([t.niche for t in titles])
    years = np.array([t.year for t in titles])
    rows: list[int] = []
    items: list[int] = []
    weights: list[float] = []

    def link(i: int, j: int, weight: float) -> None:
        if i != j:
            rows.append(i)
            items.append(j)
            weights.append(weight)

    series: dict[int, list[int]] = {}
    films: dict[int, list[int]] = {}
    leads: dict[int, list[int]] = {}
    for i, title in enumerate(titles):
        series.setdefault(title.franchise, []).append(i)
        films.setdefault(title.directors[0], []).append(i)
        leads.setdefault(title.actors[0], []).append(i)
    for members in series.values():
        members.sort(key=lambda i: titles[i].part)
        for at, i in enumerate(members):
            for step, weight in ((1, 6.0), (2, 1.5), (-1, 1.0)):
                if 0 <= at + step < len(members):
                    link(i, members[at + step], weight)
    for table, weight in ((films, 2.0), (leads, 1.0)):
        for members in table.values():
            members.sort(key=lambda i: (years[i], i))
            for at, i in enumerate(members):
                for step, share in ((1, 1.0), (2, 0.4)):
                    if at + step < len(members):
                        link(i, members[at + step], weight * share)
                    elif len(members) > step:  # after the latest film, back to the first
                        link(i, members[(at + step) % len(members)], weight * share)
    follow_ups = Rows.build(n, np.array(rows, np.int64), np.array(items, np.int64), np.array(weights))
    niches = Rows.build(len(niche_weight), niche, np.arange(n), popularity)
    everything = Rows.build(1, np.zeros(n, np.int64), np.arange(n), popularity)
    return Taste(n_items=n, niches=niches, follow_ups=follow_ups, popularity=everything, niche_weight_K=niche_weight)
