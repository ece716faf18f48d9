"""What Word2Vec's vectors know: do neighbours share director, series and genre more than chance, do analogies hold; and queries over them.

Choices: cosines of the tokens' vectors without the mean of their kind, which all skip-gram vectors lean on (Mu and Viswanath, 2018; as in
`ugt.word2vec.item_vectors`). A rate is hits among the 10 nearest items, divided by how many hits there could be at most, so that 1 is perfect
for a director of two films and of fifty alike; chance is the same figure of 10 items drawn at random. Only items with somebody to share with
are asked. A series is a parent with its episodes where the catalogue has them, and films whose titles begin alike ("Alien", "Alien 3",
"Alien: Covenant") and that have a person in common: IMDb's tables name no franchises.

Shapes: N items with a vector, G groups (directors, genres, ...), Q queries, W width.
Source: analogies by vector offset (Mikolov et al., 2013).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from ugt.features import people_of
from ugt.schema import UGTError
from ugt.sequences import ROLE_PREFIX, token
from ugt.word2vec import unit

if TYPE_CHECKING:
    from gensim.models import KeyedVectors

NEAREST = 10
QUERIES = 2_000  # asked of each kind; the standard error of a rate is then below .012
BLOCK = 128
_PART = re.compile(r"(?:[\s,]+(?:part|no\.?|vol\.?|chapter|episode))?[\s,]+(?:\d{1,2}|[ivx]{1,5})$", re.IGNORECASE)


def series_name(title: str) -> str:
    """What the parts of a series have in common: the title before a colon, without a number at its end, in lower case. May be empty."""
    return _PART.sub("", title.split(":")[0].strip()).strip().lower()


def groups(items: pa.Table, credits: pa.Table, episodes: pa.Table | None = None) -> dict[str, list[list[str]]]:
    """For each item in order of item_index: its directors, its series, its genres."""
    people = people_of(credits, items.num_rows)
    parents: dict[str, str] = {} if episodes is None else dict(zip(*(episodes[name].to_pylist() for name in ("item_id", "parent_id")), strict=True))
    found: dict[str, list[list[str]]] = {"director": [], "series": [], "genre": []}
    columns = (items.column(name).to_pylist() for name in ("item_id", "title", "genres"))
    for credit, item_id, title, genres in zip(people, *columns, strict=True):
        name = series_name(title or "")
        found["director"].append([person for person, role in credit if role == "director"])
        found["series"].append([parents.get(item_id, item_id), *(f"{name}|{person}" for person, _ in credit if name)])
        found["genre"].append(list(genres or ()))
    return found


class ItemVectors:
    """The centred unit vectors of the items that have a token; `row_of` maps an item id to its row."""

    def __init__(self, vectors: KeyedVectors, item_ids: Sequence[str]):
        """Raises UGTError if no item has a token."""
        known = [i for i, item_id in enumerate(item_ids) if token("MOV", item_id) in vectors.key_to_index]
        if len(known) < 2:
            raise UGTError("fewer than two items have a Word2Vec vector: there is nothing to compare. Look at the sentences of `ugt train word2vec`.")
        self.index = np.array(known)  # item_index of each row
        raw = np.stack([vectors[token("MOV", item_ids[i])] for i in known])
        self.mean_W = raw.mean(0)
        self.x_NW = unit(raw - self.mean_W).astype(np.float32)


def neighbour_rates(items: ItemVectors, members: Mapping[str, Sequence[Sequence[str]]], seed: int = 0, queries: int = QUERIES) -> dict[str, dict[str, float]]:
    """Rate and chance of each kind of group, and how many items were asked."""
    rng, found = np.random.default_rng(seed), {}
    for kind, lists in members.items():
        member_NG = _members([lists[i] for i in items.index])
        sizes = np.asarray(member_NG.sum(0)).ravel()
        able = np.flatnonzero(np.asarray(member_NG @ (sizes > 1).astype(np.float32)).ravel() > 0)
        asked = np.sort(rng.permutation(able)[:queries])
        rates, chances = [], []
        for start in range(0, len(asked), BLOCK):
            rows = asked[start : start + BLOCK]
            near = nearest(items.x_NW, items.x_NW[rows], NEAREST, rows[:, None])
            alike = (member_NG[rows] @ member_NG.T).tocsr()
            others = np.diff(alike.indptr) - 1
            most = np.minimum(NEAREST, others)
            hits = np.array([np.isin(near[q], alike.indices[alike.indptr[q] : alike.indptr[q + 1]]).sum() for q in range(len(rows))])
            rates.append(hits / most)
            chances.append(NEAREST * others / (len(items.x_NW) - 1) / most)
        if len(asked):
            rate, chance = float(np.concatenate(rates).mean()), float(np.minimum(1, np.concatenate(chances)).mean())
            found[kind] = {"rate": round(rate, 4), "chance": round(chance, 6), "lift": round(rate / chance, 1), "queries": len(asked)}
    return found


def analogies(
    vectors: KeyedVectors, items: ItemVectors, members: Sequence[Sequence[str]], prefix: str, seed: int = 0, questions: int = 1_000
) -> dict[str, float]:
    """Person A is to a film of A as person B is to ...: how often a film of B is among the 10 nearest to film - A + B.

    Beside it `person_alone` (the films nearest to B, without any analogy) and chance. `members`: people of each item_index. Empty if fewer than two
    people have two films.
    """
    films: dict[str, list[int]] = defaultdict(list)
    for row, i in enumerate(items.index):
        for person in set(members[i]):
            if token(prefix, person) in vectors.key_to_index:
                films[person].append(row)
    able = sorted(person for person, own in films.items() if len(own) > 1)
    if len(able) < 2:
        return {}
    rng = np.random.default_rng(seed)
    people = np.stack([vectors[token(prefix, person)] for person in able])
    people = unit(people - people.mean(0)).astype(np.float32)
    a, b = rng.integers(len(able), size=questions), rng.integers(len(able) - 1, size=questions)
    b += b >= a  # never the same person
    given = np.array([films[able[i]][rng.integers(len(films[able[i]]))] for i in a])
    n, hits, alone, chance = len(items.x_NW), 0, 0, 0.0
    near_QK = nearest(items.x_NW, items.x_NW[given] - people[a] + people[b], NEAREST, given[:, None])
    alone_QK = nearest(items.x_NW, people[b], NEAREST, given[:, None])
    for q in range(questions):
        own = [row for row in films[able[b[q]]] if row != given[q]]
        hits += bool(np.isin(near_QK[q], own).any())
        alone += bool(np.isin(alone_QK[q], own).any())
        chance += 1 - float(np.prod(1 - len(own) / (n - 1 - np.arange(min(NEAREST, n - 1 - len(own))))))
    return {
        "hit@10": round(hits / questions, 4),
        "person_alone_hit@10": round(alone / questions, 4),
        "chance": round(chance / questions, 6),
        "questions": questions,
        "people": len(able),
    }


def report(vectors: KeyedVectors, items: pa.Table, credits: pa.Table, episodes: pa.Table | None = None, seed: int = 0) -> dict[str, Any]:
    """`neighbours` and `analogies` as above, for a whole catalogue (rows in order of item_index)."""
    owned, people = ItemVectors(vectors, items.column("item_id").to_pylist()), people_of(credits, items.num_rows)
    by_role = {role: [[person for person, of in credit if of == role] for credit in people] for role in ("director", "actor")}
    return {
        "items": len(owned.index),
        "items_without_vector": items.num_rows - len(owned.index),
        "tokens": len(vectors),
        "neighbours": neighbour_rates(owned, groups(items, credits, episodes), seed),
        "analogies": {role: analogies(vectors, owned, lists, ROLE_PREFIX[role], seed) for role, lists in by_role.items()},
    }


def nearest(x_NW: np.ndarray, query_QW: np.ndarray, count: int, without: np.ndarray | None = None) -> np.ndarray:
    """Rows of the largest inner products, int64 [Q, count], best first, ties by row; `without` [Q, any] are left out. Fewer where there are no more."""
    found = []
    for start in range(0, len(query_QW), BLOCK):
        score = query_QW[start : start + BLOCK] @ x_NW.T
        if without is not None:
            np.put_along_axis(score, without[start : start + BLOCK], -np.inf, axis=1)
        count = min(count, x_NW.shape[0] - (0 if without is None else without.shape[1]))
        best = np.argpartition(-score, count - 1, axis=1)[:, :count]
        order = np.lexsort((best, -np.take_along_axis(score, best, 1)), axis=1)
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found)


def similar(vectors: KeyedVectors, key: str, count: int = 10, kind: str = "") -> list[tuple[str, float]]:
    """Tokens nearest to a token by cosine, of its own kind unless `kind` names another (a prefix such as DIR)."""
    return _nearest_tokens(vectors, [(key, 1.0)], count, kind or key[:3])


def analogy(vectors: KeyedVectors, a: str, b: str, c: str, count: int = 10) -> list[tuple[str, float]]:
    """`a` is to `b` as `c` is to ...: the tokens of b's kind that are nearest to b - a + c."""
    return _nearest_tokens(vectors, [(b, 1.0), (a, -1.0), (c, 1.0)], count, b[:3])


def _nearest_tokens(vectors: KeyedVectors, terms: Sequence[tuple[str, float]], count: int, kind: str) -> list[tuple[str, float]]:
    for key, _ in terms:
        if key not in vectors.key_to_index:
            raise UGTError(f"no vector for the token {key}. Tokens are a kind and an id: MOV_tt0111161, DIR_nm0000233, GEN_Drama, ERA_1990s.")
    names, x_NW, _ = _of_kind(vectors, kind)
    if not names:
        raise UGTError(f"no token is of the kind {kind}. The kinds are MOV ACT DIR WRI GEN RAT ERA TYP REG, those that word2vec.families brings in.")
    query_W = np.zeros(vectors.vector_size, np.float32)
    for key, weight in terms:
        query_W += weight * unit(vectors[key][None] - _of_kind(vectors, key[:3])[2])[0]
    cosine_N = x_NW @ unit(query_W[None])[0]
    asked = {key for key, _ in terms}
    order = (int(row) for row in np.argsort(-cosine_N, kind="stable"))
    return [(names[row], float(cosine_N[row])) for row in order if names[row] not in asked][:count]


def _of_kind(vectors: KeyedVectors, kind: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The tokens of a kind, their centred unit vectors, and the mean that was taken off."""
    names = [name for name in vectors.index_to_key if name.startswith(kind + "_")]
    raw = vectors.vectors[[vectors.key_to_index[name] for name in names]]
    mean_W = raw.mean(0) if names else np.zeros(vectors.vector_size, np.float32)
    return names, unit(raw - mean_W).astype(np.float32), mean_W


def _members(lists: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """Which row is in which group, 0 or 1 [N, G]."""
    names: dict[str, int] = {}
    pairs = [(row, names.setdefault(name, len(names))) for row, of in enumerate(lists) for name in sorted(set(of))]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(lists), max(1, len(names))))
