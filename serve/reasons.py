"""A short, true reason for one recommended item, from the catalogue and the user's own history."""

from __future__ import annotations

from serve.catalogue import Catalogue
from ugt.schema import Rung
from ugt.stores.features import ALL

RECENT = 20


def reason(catalogue: Catalogue, index: int, source: Rung, history: list[int], segment: str) -> str:
    """One sentence. Personal rungs name the recent item that shares most with this one (genres, then leading codes; the newer wins)."""
    if source == "popular":
        return "Popular with all viewers" if segment == ALL else f"Popular with viewers like you ({segment})"
    genres, code = set(catalogue.genres[index]), catalogue.codes_N3[index]

    def shared(i: int) -> tuple[int, int]:
        same = catalogue.codes_N3[i] == code
        return len(genres & set(catalogue.genres[i])), int(same[0]) + int(same[0] and same[1])

    recent = list(reversed(history[-RECENT:]))
    if not recent:
        return "Close to your taste"
    best = max(recent, key=shared)  # `max` keeps the first of equals: the newest
    common = [g for g in catalogue.genres[index] if g in catalogue.genres[best]]
    if common:
        return f"{' and '.join(common[:2])}, like {catalogue.titles[best]} in your history"
    return f"Follows from your history, last {catalogue.titles[recent[0]]}"
