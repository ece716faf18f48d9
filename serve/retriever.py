"""Retriever: dense search in this process over a snapshot of the Milvus vectors, read when a version is loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from ray import serve

from serve.catalogue import Catalogue
from serve.logs import logger
from serve.versions import StaleVersionError, VersionSource
from ugt.ranking import dense_candidates, top
from ugt.schema import UGTError
from ugt.stores.vectors import SPACES, VectorStore, dense_space

FilterKey = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Candidates:
    """Best first: item_index [C] and score [C]; `asked` [A] are the scores of the items that were asked about."""

    items: np.ndarray
    scores: np.ndarray
    asked: np.ndarray


@serve.deployment
class Retriever:
    def __init__(self, source: VersionSource):
        self._source = source
        self._version = ""
        self._log = logger("Retriever")

    def reconfigure(self, user_config: dict[str, str]) -> None:
        """Read the vectors of the version named by `user_config`."""
        start = time.monotonic()
        version = user_config["version"]
        catalogue = self._source.catalogue(self._source.folder(version))
        store = VectorStore(self._source.resolved().milvus_uri)
        try:
            dense_ND = _snapshot(store, dense_space(version), catalogue)
            # `spaces` lists what is there: a catalogue without text or co-occurrence vectors has fewer
            spaces = {space: _normalised(_snapshot(store, space, catalogue)) for space in SPACES if space in store.spaces()}
        finally:
            store.close()
        self._catalogue, self._dense_ND, self._cosine_ND, self._spaces, self._version = catalogue, dense_ND, _normalised(dense_ND), spaces, version
        self._log.info("vectors read", version=version, spaces=["dense", *spaces], items=len(catalogue), seconds=round(time.monotonic() - start, 2))

    def check_health(self) -> None:
        if not self._version:
            raise RuntimeError("no vectors are loaded")

    def status(self) -> tuple[str, str | None]:
        """The version loaded, and what is wrong with Milvus (None: nothing)."""
        try:
            store = VectorStore(self._source.resolved().milvus_uri, timeout_s=2)
            try:
                store.ping()
            finally:
                store.close()
        except Exception as error:  # whatever it is, it is the answer
            return self._version, f"{type(error).__name__}: {error}"
        return self._version, None

    def search(self, version: str, user_vector_D: np.ndarray, exclude: list[int], key: FilterKey, count: int, ask: np.ndarray) -> Candidates:
        """The `count` best legal items of the dense head for a user vector, and its scores of the items in `ask`."""
        self._check(version)
        items, scores = dense_candidates(user_vector_D, self._dense_ND, count, self._forbidden(exclude, key))
        return Candidates(items, scores, self._dense_ND[ask] @ user_vector_D)

    def like(self, version: str, history: list[int], exclude: list[int], key: FilterKey, count: int) -> Candidates:
        """The `count` legal items nearest (cosine) to the mean of some items: what is left when no user vector could be made."""
        self._check(version)
        mean_D = _normalised(self._cosine_ND[history].mean(0, keepdims=True))[0]
        items, scores = dense_candidates(mean_D, self._cosine_ND, count, self._forbidden(exclude, key))
        return Candidates(items, scores, np.empty(0, np.float32))

    def similar(self, version: str, item: int, space: str, exclude: list[int], count: int) -> Candidates | None:
        """The `count` nearest items of one item; None if there are no vectors of the space."""
        self._check(version)
        forbidden_N = self._forbidden([*exclude, item], ((), ()))
        if space == "semantic_id":
            codes = self._catalogue.codes_N3
            same = codes == codes[item]
            shared_N = same[:, 0].astype(np.float32) + (same[:, 0] & same[:, 1])
            score_N = shared_N + (1.0 + self._cosine_ND @ self._cosine_ND[item]) / 2.0 * 0.999  # below 1: a shared code always wins
        elif space in self._spaces:
            score_N = self._spaces[space] @ self._spaces[space][item]
        else:
            return None
        legal = np.flatnonzero(~forbidden_N)
        items, scores = top(score_N[legal], legal, count)
        return Candidates(items, scores, np.empty(0, np.float32))

    def _check(self, version: str) -> None:
        if version != self._version:
            raise StaleVersionError(version, self._version)

    def _forbidden(self, exclude: list[int], key: FilterKey) -> np.ndarray:
        allowed_N = self._catalogue.allowed(key)
        forbidden_N = np.zeros(len(self._catalogue), bool) if allowed_N is None else ~allowed_N
        forbidden_N[exclude] = True
        return forbidden_N


def _snapshot(store: VectorStore, space: str, catalogue: Catalogue) -> np.ndarray:
    item_ids, x_ND = store.read(space)
    if item_ids != catalogue.item_ids:
        raise UGTError(
            f"the vector space {space} belongs to another catalogue ({len(item_ids):,} items, not {len(catalogue):,}). Load it again: ugt data materialize"
        )
    return x_ND


def _normalised(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
