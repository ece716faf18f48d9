"""Filters as the decode reads them: which slots of the trie pass, and how many items under each prefix do.

Choices: O(S + G) of work once per distinct filter and never per request: the last KEPT sets of filters are remembered, and a request without a filter
reads arrays made at the start.

Shapes: B requests, F filters, N items, S slots, G groups, K first codes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

KEPT = 32  # sets of filters that came together in a batch; 2 MB each at a million items

Key = tuple[bytes | None, ...]


class Filters:
    def __init__(self, tables: Mapping[str, NDArray], k1: int):
        slot_item_S = tables["slot_item_S"]
        self._live_S = slot_item_S >= 0
        self._item_S = np.maximum(slot_item_S, 0)
        self._group_S = np.where(self._live_S, tables["item_group_N"][self._item_S], 0)
        self._groups, self._k1 = len(tables["group_count_G"]), k1
        self._known: OrderedDict[Key, dict[str, NDArray]] = OrderedDict()
        self._lock = Lock()

    def arrays(self, allowed: Sequence[NDArray[np.bool_] | None]) -> dict[str, NDArray]:
        """`filter_B`, `slot_allowed_FS`, `group_live_FG` and `first_live_FK` of B requests; equal masks [N] share a row, None lets everything through."""
        rows: dict[bytes | None, int] = {}
        masks, filter_B = [], np.zeros(len(allowed), np.int64)
        for b, mask_N in enumerate(allowed):
            key = None if mask_N is None else np.packbits(mask_N).tobytes()
            if key not in rows:
                rows[key] = len(rows)
                masks.append(mask_N)
            filter_B[b] = rows[key]
        return {"filter_B": filter_B, **self._of(tuple(rows), masks)}

    def _of(self, key: Key, masks: Sequence[NDArray[np.bool_] | None]) -> dict[str, NDArray]:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        slot_FS = np.stack([self._live_S if mask_N is None else self._live_S & mask_N[self._item_S] for mask_N in masks])
        group_FG = np.stack([np.bincount(self._group_S[slot_S], minlength=self._groups) for slot_S in slot_FS]).astype(np.int32)
        made = {"slot_allowed_FS": slot_FS, "group_live_FG": group_FG, "first_live_FK": group_FG.reshape(len(group_FG), self._k1, -1).sum(2, dtype=np.int32)}
        with self._lock:
            self._known[key] = made
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return made
