"""Feature definitions and vocabularies of items: one definition for batch and online."""

from __future__ import annotations

from ugt.schema import Config


class FeatureConfig(Config):
    max_people: int = 512  # most frequent people get a column of their own
    min_person_items: int = 2
