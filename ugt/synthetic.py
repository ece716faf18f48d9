"""The one generator of catalogues and events, in IMDb's and MovieLens' genuine file formats, at any scale."""

from __future__ import annotations

from ugt.schema import Config


class SampleConfig(Config):
    titles: int = 4_000
    users: int = 2_000
    events: int = 100_000
    seed: int = 0
