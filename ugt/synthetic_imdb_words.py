"""String pools of the IMDb-sized files: titles in a dozen scripts, names, genres, jobs, characters, regions.

A pool is a polars Series; a table is made by gathering from it with an array of places (`gather`), which costs some tens of
nanoseconds a row. Frequencies are in the pools (a frequent entry stands there more often). Words: `synthetic_words`, and the scripts below.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ugt.synthetic_words import NATIVE, PEOPLE, STYLES, SUBTITLES

SEASONS, EPISODES = 30, 300  # the numbers that a name like "Episode #3.14" can hold
EPISODE_WORDS = ("Episode", "Folge", "Épisode", "Episodio", "Episódio", "エピソード", "एपिसोड")  # place = language of an episode's name
GENRES = {  # IMDb's 28, with about their share of the credits of a genre
    "Drama": 20,
    "Comedy": 14,
    "Talk-Show": 9,
    "Short": 8,
    "Documentary": 7,
    "News": 6,
    "Romance": 6,
    "Family": 5,
    "Reality-TV": 5,
    "Animation": 4,
    "Action": 4,
    "Adventure": 4,
    "Crime": 4,
    "Music": 3,
    "Game-Show": 3,
    "Sport": 3,
    "Adult": 2,
    "Fantasy": 2,
    "Mystery": 2,
    "Horror": 2,
    "Thriller": 2,
    "History": 2,
    "Biography": 1,
    "Sci-Fi": 1,
    "Musical": 1,
    "War": 0.4,
    "Western": 0.3,
    "Film-Noir": 0.1,
}
# in IMDb's order within a title: (share, has characters, jobs with the null more often where it is)
CATEGORIES: dict[str, tuple[float, bool, tuple[str | None, ...]]] = {
    "actor": (22.5, True, (None,)),
    "actress": (17.0, True, (None,)),
    "self": (14.0, True, (None,)),
    "archive_footage": (0.6, True, (None,)),
    "archive_sound": (0.02, True, (None,)),
    "director": (8.5, False, (None, None, None, None, None, "co-director", "segment director")),
    "writer": (13.0, False, (None, None, "written by", "screenplay", "story by", "creator", "teleplay", 'based on the novel "The Long Tide"', "head writer")),
    "producer": (7.5, False, ("producer", "producer", "executive producer", "co-producer", "line producer", 'producer: Part I, "Dawn"', None)),
    "composer": (3.2, False, (None, None, "music by", "original music")),
    "cinematographer": (4.6, False, (None, None, None, "director of photography", "cinematography by")),
    "editor": (6.0, False, (None, None, None, "film editor", "edited by", "supervising editor")),
    "production_designer": (1.2, False, (None, None, "set design")),
    "casting_director": (1.3, False, (None, None, "casting by")),
}
PROFESSIONS = (  # the most frequent first
    "actor actress producer director writer miscellaneous camera_department editor art_department composer sound_department cinematographer "
    "music_department visual_effects assistant_director animation_department soundtrack stunts archive_footage talent_agent casting_director"
)
# region -> (share, language of an alternative title there, place in EPISODE_WORDS)
REGIONS: dict[str, tuple[float, str, int]] = {
    "DE": (11, "de", 1),
    "FR": (11, "fr", 2),
    "JP": (11, "ja", 5),
    "IN": (11, "hi", 6),
    "ES": (10.5, "es", 3),
    "IT": (10.5, "it", 3),
    "PT": (10.5, "pt", 4),
    "US": (5, "en", 0),
    "GB": (2.5, "en", 0),
    "CA": (1.5, "fr", 2),
    "XWW": (2, "en", 0),
    "BR": (1.5, "pt", 4),
    "MX": (1, "es", 3),
    "RU": (1, "ru", 0),
    "PL": (0.8, "pl", 0),
    "SE": (0.8, "sv", 0),
    "TR": (0.6, "tr", 0),
    "GR": (0.6, "el", 0),
    "CN": (0.6, "cmn", 0),
    "KR": (0.6, "ko", 0),
    "TW": (0.4, "cmn", 0),
    "IL": (0.4, "he", 0),
    "EG": (0.4, "ar", 0),
    "UA": (0.4, "uk", 0),
    "AU": (0.8, "en", 0),
}
ATTRIBUTES = ("literal title", "reissue title", "complete title", "literal English title", 'new title, "director\'s cut"', "informal title", "short title")
SCRIPTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Последний", "Тихий", "Чужой", "Белый", "Забытый"), ("вечер", "берег", "поезд", "дом на углу", "снег", "«Маяк»")),
    (("Останній", "Зимовий", "Далекий"), ("їжак", "ґрунт", "вечір", "шлях")),
    (("Το τελευταίο", "Ένα μικρό", "Το χαμένο"), ("καλοκαίρι", "τραγούδι", "ταξίδι", "γράμμα")),
    (("最后的", "寂静的", "红色的", "遥远的"), ("夏天", "城市", "河流", "灯塔", "信")),
    (("마지막", "조용한", "붉은", "먼"), ("여름", "바다", "편지", "겨울", "도시")),
    (("आख़िरी", "नीला", "छोटा"), ("सपना", "शहर", "गीत", "रास्ता")),
    (("الليلة", "المدينة", "الطريق"), ("الأخيرة", "القديمة", "البعيدة")),
    (("הלילה", "הבית", "השיר"), ("האחרון", "הישן", "הרחוק")),
    (("คืน", "เมือง", "บ้าน"), ("สุดท้าย", "เงียบ", "เก่า")),
    (("Son", "Kayıp", "Sessiz"), ("ışık", "şehir", "çığlık", "gölge")),
    (("Ostatni", "Zagubiony", "Cichy"), ("żuraw", "świt", "łabędź", "dzień")),
    (("Đêm", "Thành phố", "Mùa hè"), ("cuối cùng", "im lặng", "xa xôi")),
)


@dataclass(frozen=True)
class Titles:
    """The pool of title beginnings (English, then other languages from `foreign` on, then episode names from `episodes` on) and of endings."""

    heads: pl.Series
    foreign: int
    episodes: int
    tails: pl.Series


@cache
def titles() -> Titles:
    english = [
        f"{lead}{adjective} {noun}" for _, adjectives, nouns, _, _ in STYLES.values() for adjective in adjectives for noun in nouns for lead in ("", "The ")
    ]
    english += [f'"{noun}"' for _, _, nouns, _, _ in STYLES.values() for noun in nouns]
    english += [f'The {a} "{n}" {p}' for _, adj, nouns, places, _ in STYLES.values() for a in adj[:3] for n in nouns[:5] for p in places]
    english += [f"{n}, {a} & {p}: Don't Look" for _, adj, nouns, places, _ in STYLES.values() for a in adj[:3] for n in nouns[:5] for p in places]
    english += [
        '"',
        '"A',
        "'Til Then",
        "#Hashtag",
        "=1+1",
        "-30-",
        "1,000,000",
        "null",
        "NA",
        "N/A",
        "Don't",
        "C:\\Dos",
        "50% Off",
        "Ω",
        "🎬 Behind the Scenes",
        "Café ½",
    ]
    foreign = [f"{a} {b} {c}" for first, second, third in NATIVE.values() for a in first for b in second for c in ("", *third)]
    foreign += [f"{a} {b}" for first, second in SCRIPTS for a in first for b in second]
    foreign = [text.strip() for text in foreign] * 6  # about a quarter of the titles
    episodes = [f"{word} #{s}.{e}" for word in EPISODE_WORDS for s in range(1, SEASONS + 1) for e in range(1, EPISODES + 1)]
    places = [place for _, _, _, places, _ in STYLES.values() for place in places]
    tails = (
        [f" in {place}" for place in places]
        + [f": {text}" for text in SUBTITLES]
        + [f" {n}" for n in range(2, 10)]
        + [f" ({year})" for year in range(1950, 2025)]
    )
    tails += [f" of {first}" for first_names, _ in PEOPLE.values() for first in first_names] + [f" - Part {n}" for n in range(1, 60)]
    tails += [f", {first} {last}" for first_names, family in PEOPLE.values() for first in first_names for last in family]
    return Titles(pl.Series(english + foreign + episodes), len(english), len(english) + len(foreign), pl.Series(["", *tails]))


@cache
def names() -> tuple[pl.Series, pl.Series]:
    """First names (some with a middle initial, a nickname in quotes, or in another script) and family names."""
    first = [name for given, _ in PEOPLE.values() for name in given]
    first += [f"{name} {letter}." for name in first for letter in "ABCDEFGHJKLMNPRSTW"]
    first += [f'{name} "{nick}"' for name in first[:60] for nick in ("Slim", "Lucky", "D.J.")] + ["Анна", "小明", "민수", "Nguyễn Thị", "محمد", "Σοφία"]
    family = [name for _, family in PEOPLE.values() for name in family]
    family += [f"{a}-{b}" for a in family[:40] for b in family[40:60]] + [f"{name} {suffix}" for name in family[:60] for suffix in ("Jr.", "III", "M.D.")]
    return pl.Series(first), pl.Series(family)


@cache
def genre_lists() -> tuple[pl.Series, NDArray[np.bool_]]:
    """4,096 lists of one to three genres, in IMDb's alphabetic order, and which of them hold Adult."""
    rng = np.random.default_rng(28)
    weights = np.array(list(GENRES.values())) / sum(GENRES.values())
    sizes = rng.choice([1, 2, 3], 4096, p=[0.42, 0.24, 0.34])
    lists = [",".join(sorted(rng.choice(list(GENRES), size, replace=False, p=weights).tolist())) for size in sizes.tolist()]
    return pl.Series(lists), np.array(["Adult" in text for text in lists])


@cache
def professions() -> pl.Series:
    """4,096 lists of one to three professions."""
    rng = np.random.default_rng(29)
    known = PROFESSIONS.split()
    weights = 1 / np.arange(1, len(known) + 1)
    sizes = rng.choice([1, 2, 3], 4096, p=[0.6, 0.2, 0.2]).tolist()
    return pl.Series([",".join(rng.choice(known, size, replace=False, p=weights / weights.sum()).tolist()) for size in sizes])


@cache
def characters() -> tuple[pl.Series, int]:
    """What `characters` holds, as IMDb writes it (a JSON list without blanks): null, parts played, and from the returned place on, selves."""
    first, family = (s.to_list() for s in names())
    quoted = [f'["{a.split()[0]} \\"{nick}\\" {b}"]' for a, b, nick in zip(first[:90], family[:90], ["Slim", "Ace", "Doc"] * 30, strict=False)]
    parts = [f'["{a} {b}"]' for a in first[:80] for b in family[:60]] + quoted
    parts += [f'["{a}","{b}"]' for a, b in zip(first[:80], family[:80], strict=False)] + [
        '["Policeman #2"]',
        '["Narrator"]',
        '["The Stranger"]',
        '["Nurse"]',
    ] * 100
    selves = ['["Self"]'] * 12 + ['["Self - Host"]', '["Self - Guest"]', '["Self","Narrator"]', '["Self (archive footage)"]', '["Self - \\"Late Night\\""]']
    return pl.Series([None, *parts, *selves], dtype=pl.String), 1 + len(parts)


@cache
def jobs() -> tuple[pl.Series, NDArray[np.int64], NDArray[np.int64]]:
    """All jobs in one pool, and where each category's begin and how many they are."""
    sizes = np.array([len(listed) for _, _, listed in CATEGORIES.values()])
    return pl.Series([job for _, _, listed in CATEGORIES.values() for job in listed], dtype=pl.String), np.cumsum(sizes) - sizes, sizes


def gather(pool: pl.Series, places: NDArray[Any]) -> pl.Series:
    """`pool[places]`."""
    return pool.gather(pl.Series(places.astype(np.uint32)))


def drawn(rng: np.random.Generator, shares: Any, size: int) -> NDArray[np.int64]:
    """Places drawn by their shares (any positive numbers)."""
    total = np.cumsum(np.asarray(list(shares), dtype=np.float64))
    return np.searchsorted(total, rng.random(size) * total[-1], side="right")
