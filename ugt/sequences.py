"""Sequence families: the sentences that Word2Vec reads, made of catalogue and histories, and the corpus they are kept in.

Choices: items and what is known of them are tokens of one vocabulary, told apart by prefix (MOV ACT DIR WRI GEN RAT ERA TYP REG). A family is a
function of rows that belong together (a user's events, a range of items, a person's items), so it runs over a whole table or over its parts
alike. Where a key has many members (a genre, a series, a director's genres) the sentence is cut into stretches with the key in the middle, so
that a window of five reaches it from each.

A corpus is a folder of text files, one sentence a line, a file per family and part, and `corpus.json`, which lists them in the order they are read in.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from ugt.artifacts import write_text
from ugt.features import UNKNOWN, decade, people_of, rating_bucket
from ugt.schema import Config, Record, UGTError

# history: a user's items. person: a person and their movies. context: a movie among the tokens that describe it. episodes: a series among its episodes.
# coactors: the actors of a movie. genre, era, rating: movies that share it. director_genre, actor_genre: a person among the genres of their movies.
Family = Literal["history", "person", "context", "episodes", "coactors", "genre", "era", "rating", "director_genre", "actor_genre"]
FAMILIES: tuple[Family, ...] = get_args(Family)  # also the order of a corpus
ITEM_FAMILIES: tuple[Family, ...] = ("context", "coactors", "genre", "era", "rating")  # made of a range of items
PERSON_FAMILIES: tuple[Family, ...] = ("person", "director_genre", "actor_genre")  # made of all items of a person
GROUP_PREFIX: Mapping[str, str] = {"genre": "GEN", "era": "ERA", "rating": "RAT"}
PERSON_PREFIX: Mapping[str, str] = {"director_genre": "DIR", "actor_genre": "ACT"}
ROLE_PREFIX = {"actor": "ACT", "director": "DIR", "writer": "WRI"}
MAX_SENTENCE = 5_000  # gensim cuts longer lines at 10,000 words
REACH = 5  # members on each side of a key: the window's default
INDEX = "corpus.json"

Sentences = Iterator[list[str]]


class CorpusConfig(Config):
    """What a corpus is made of."""

    families: tuple[Family, ...]


class Pair(NamedTuple):
    """A person's token (by role) and an item they worked on, with the item's genres."""

    person: str
    item_index: int
    item: str
    genres: list[str]


def token(prefix: str, value: str) -> str:
    """A word of the corpus: prefix and value, white space made harmless."""
    return f"{prefix}_" + re.sub(r"\s", "_", value)


def item_tokens(row: Mapping[str, Any], people: Sequence[tuple[str, str]]) -> list[str]:
    """What is known of an item, as tokens: people with their role (most important first), genres, era, type, rating, countries."""
    tokens = [token(ROLE_PREFIX[role], person) for person, role in people if role in ROLE_PREFIX]
    tokens += [token("GEN", genre) for genre in row.get("genres") or ()]
    for prefix, value in (("ERA", decade(row.get("year"))), ("RAT", rating_bucket(row.get("rating"))), ("TYP", row.get("item_type") or UNKNOWN)):
        tokens += [token(prefix, value)] if value != UNKNOWN else []
    return tokens + [token("REG", country) for country in row.get("countries") or ()]


def catalogue_tokens(items: pa.Table, credits: pa.Table) -> list[list[str]]:
    """`item_tokens` of every item in order of item_index."""
    rows = items.select(["genres", "year", "rating", "item_type", "countries"]).to_pylist()
    return [item_tokens(row, people) for row, people in zip(rows, people_of(credits, items.num_rows), strict=True)]


def history_sentences(words: Sequence[str] | Mapping[int, str], lists: Iterable[Sequence[int] | np.ndarray]) -> Sentences:
    """A user's items in their order, repeats in a row once. `words`: token by item index."""
    for seen in lists:
        x = np.asarray(seen, np.int64)
        once = x[np.r_[True, x[1:] != x[:-1]]] if len(x) else x
        for i in range(0, len(once), MAX_SENTENCE):
            yield [words[item] for item in once[i : i + MAX_SENTENCE]]


def item_sentences(family: Family, words: Sequence[str], tokens: Sequence[Sequence[str]]) -> Sentences:
    """The sentences of one of ITEM_FAMILIES for a range of items: their own words, and the tokens known of each."""
    if family == "context":
        for word, known in zip(words, tokens, strict=True):
            if known:
                half = len(known) // 2
                yield [*known[:half], word, *known[half:]]
    elif family == "coactors":
        for known in tokens:
            actors = [word for word in known if word.startswith("ACT_")]
            if len(actors) > 1:
                yield actors
    else:
        start = GROUP_PREFIX[family] + "_"
        members: dict[str, list[str]] = {}
        for word, known in zip(words, tokens, strict=True):
            for key in known:
                if key.startswith(start):
                    members.setdefault(key, []).append(word)
        for key in sorted(members):
            if len(members[key]) > 1:
                # mixed, and on every machine alike: in order of id, neighbours would share more than the key
                yield from around(key, sorted(members[key], key=lambda word: (stable_hash(word), word)))


def pairs(words: Sequence[str], tokens: Sequence[Sequence[str]], first: int = 0) -> Iterator[Pair]:
    """Who worked on which item, for a range of items that begins at item index `first`."""
    for i, (word, known) in enumerate(zip(words, tokens, strict=True), start=first):
        genres = [key for key in known if key.startswith("GEN_")]
        for person in known:
            if person[:3] in ROLE_PREFIX.values():
                yield Pair(person, i, word, genres)


def person_sentences(family: Family, worked: Iterable[Pair]) -> Sentences:
    """The sentences of one of PERSON_FAMILIES; `worked` holds all pairs of each person in it, in any order. Movies need two of them, genres one."""
    by_person: dict[str, list[Pair]] = {}
    start = PERSON_PREFIX.get(family, "")
    for pair in worked:
        if pair.person.startswith(start):
            by_person.setdefault(pair.person, []).append(pair)
    for person in sorted(by_person):
        own = sorted(by_person[person], key=lambda pair: pair.item_index)
        if family != "person":
            yield from around(person, [genre for pair in own for genre in pair.genres])
        elif len(own) > 1:
            yield [person, *(pair.item for pair in own[:MAX_SENTENCE])]


def episode_sentences(episodes: pa.Table) -> Sentences:
    """A series among its episodes in order of season and number (unknown last); `episodes` are EPISODES rows."""
    by_series: dict[str, list[tuple[float, float, str]]] = {}
    columns = ("parent_id", "season", "episode", "item_id")
    for parent, season, number, item in zip(*(episodes.column(name).to_pylist() for name in columns), strict=True):
        by_series.setdefault(parent, []).append((np.inf if season is None else season, np.inf if number is None else number, item))
    for parent in sorted(by_series):
        yield from around(token("MOV", parent), [token("MOV", item) for _, _, item in sorted(by_series[parent])])


def around(key: str, members: Sequence[str]) -> Sentences:
    """The members in their order, in stretches of at most 2 x REACH with the key in the middle of each."""
    for i in range(0, len(members), 2 * REACH):
        stretch = members[i : i + 2 * REACH]
        half = len(stretch) // 2
        yield [*stretch[:half], key, *stretch[half:]]


def stable_hash(word: str) -> int:
    """A hash that is the same in every process; Python's own is not."""
    return zlib.crc32(word.encode())


class Piece(Record):
    """One file of a corpus."""

    file: str
    family: Family
    part: int
    sentences: int
    words: int


class Lines(NamedTuple):
    """Sentences as they lie in a file, and how many they are."""

    text: bytes
    sentences: int
    words: int


def as_lines(found: Iterable[Sequence[str]]) -> Lines:
    lines = [" ".join(sentence) for sentence in found if sentence]
    return Lines("".join(line + "\n" for line in lines).encode(), len(lines), sum(line.count(" ") + 1 for line in lines))


class Corpus:
    """A folder of pieces. `add` them in any order, then `close`; a corpus without `corpus.json` is not whole and is refused."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.pieces: list[Piece] = []

    def add(self, family: Family, part: int, lines: Lines) -> None:
        if lines.sentences:
            piece = Piece(file=f"{family}-{part:05d}.txt", family=family, part=part, sentences=lines.sentences, words=lines.words)
            (self.folder / piece.file).write_bytes(lines.text)
            self.pieces.append(piece)

    def close(self) -> None:
        self.pieces.sort(key=lambda piece: (FAMILIES.index(piece.family), piece.part))
        write_text(self.folder / INDEX, json.dumps([piece.model_dump() for piece in self.pieces], indent=1))

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Raises UGTError if there is none."""
        corpus = cls(folder)
        if not (corpus.folder / INDEX).is_file():
            raise UGTError(f"no {INDEX} in {folder}. Run `ugt data corpus` first.")
        corpus.pieces = [Piece(**row) for row in json.loads((corpus.folder / INDEX).read_text())]
        return corpus

    @property
    def words(self) -> int:
        return sum(piece.words for piece in self.pieces)

    @property
    def sentences(self) -> int:
        return sum(piece.sentences for piece in self.pieces)

    def files(self) -> list[Path]:
        """The pieces in the order they are read in."""
        return [self.folder / piece.file for piece in self.pieces]

    def figures(self) -> dict[str, dict[str, int]]:
        """Sentences and words of each family that has any."""
        found: dict[str, dict[str, int]] = {}
        for piece in self.pieces:
            of = found.setdefault(piece.family, {"sentences": 0, "words": 0})
            of["sentences"] += piece.sentences
            of["words"] += piece.words
        return found
