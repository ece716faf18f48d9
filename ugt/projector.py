"""Word2Vec's vectors for the Embedding Projector (projector.tensorflow.org): `vectors.tsv` and `metadata.tsv`, row for row, and names for tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from ugt.artifacts import usable_folder, write_text
from ugt.schema import UGTError
from ugt.sequences import ROLE_PREFIX, token

if TYPE_CHECKING:
    from gensim.models import KeyedVectors

HEADER = "token\tkind\tname\tgenres\tyear"
KINDS = {"MOV": "movie", "ACT": "actor", "DIR": "director", "WRI": "writer", "GEN": "genre", "RAT": "rating", "ERA": "era", "TYP": "type", "REG": "region"}


class Label(NamedTuple):
    """What a token stands for."""

    name: str
    genres: str = ""
    year: str = ""

    def __str__(self) -> str:
        return self.name + (f" ({self.year})" if self.year else "")


class Labels:
    """A name for every token: title and year of an item, name of a person, else what follows the prefix."""

    def __init__(self, items: pa.Table, people: pa.Table):
        columns = (items.column(name).to_pylist() for name in ("item_id", "title", "genres", "year"))
        self._known = {
            token("MOV", item_id): Label(title or item_id, ", ".join(genres or ()), "" if year is None else str(year))
            for item_id, title, genres, year in zip(*columns, strict=True)
        }
        for person, name in zip(people.column("person_id").to_pylist(), people.column("name").to_pylist(), strict=True):
            self._known |= {token(prefix, person): Label(name or person) for prefix in ROLE_PREFIX.values()}

    def of(self, word: str) -> Label:
        return self._known.get(word) or Label(word[4:].replace("_", " "))

    def token_of(self, text: str, vectors: KeyedVectors) -> str:
        """The token meant by a token, a title or a name. Raises UGTError if nothing is called so, or several things are."""
        if text in vectors.key_to_index:
            return text
        found = [word for word in vectors.index_to_key if self.of(word).name.lower() == text.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UGTError(f"'{text}' may be {', '.join(f'{word} ({self.of(word)})' for word in found[:8])}. Give the token.")
        raise UGTError(f"no token, title or name of the vectors is '{text}'. Tokens are a kind and an id: MOV_tt0111161, DIR_nm0000233, GEN_Drama, ERA_1990s.")


def write(vectors: KeyedVectors, labels: Labels, out_dir: Path, limit: int) -> int:
    """The `limit` most frequent tokens; returns how many that are. Raises UGTError if the folder can't be written to."""
    usable_folder(out_dir, "--out")
    count = min(limit, len(vectors))
    write_text(out_dir / "vectors.tsv", _text("\t".join(f"{x:.6g}" for x in row) for row in vectors.vectors[:count]))
    write_text(out_dir / "metadata.tsv", _text([HEADER, *_metadata(vectors.index_to_key[:count], labels)]))
    return count


def _metadata(words: Iterable[str], labels: Labels) -> Iterator[str]:
    for word in words:
        about = labels.of(word)
        yield "\t".join(" ".join(value.split()) for value in (word, KINDS.get(word[:3], word[:3]), about.name, about.genres, about.year))


def _text(lines: Iterable[str]) -> str:
    return "".join(line + "\n" for line in lines)
