"""Where replicas find a model version: its folder in the registry, its catalogue joined with the records, how it makes one ranking."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from serve.catalogue import Catalogue
from ugt.memory import Memory
from ugt.ranking import Fusion
from ugt.registry import Registry
from ugt.runtime import CARD
from ugt.settings import StoresConfig
from ugt.stores import embedded


class StaleVersionError(Exception):
    """The caller and the replica hold different model versions; item indices would not mean the same."""

    def __init__(self, wanted: str, loaded: str):
        super().__init__(wanted, loaded)  # both, so that the error survives pickling between processes
        self.wanted, self.loaded = wanted, loaded


@dataclass(frozen=True)
class VersionSource:
    """Given to every replica: plain values, so that it travels."""

    name: str
    registry: str
    stores: StoresConfig
    home: Path

    def folder(self, version: str) -> Path:
        """The local folder of a version, checked against its manifest."""
        return Registry(self.registry).resolve(self.name, version)

    def resolved(self) -> StoresConfig:
        """Addresses of the stores; embedded servers are started if they are not running."""
        return embedded.resolve(self.stores, self.home)

    def catalogue(self, folder: Path) -> Catalogue:
        return Catalogue.load(folder, self.resolved().sql_url)

    def fusion(self, folder: Path) -> tuple[Fusion, Memory | None]:
        """How this version makes one ranking, chosen on validation and kept in its card, and the memory if it needs one for it."""
        fusion = Fusion(**json.loads((folder / CARD).read_text())["fusion"])
        return fusion, Memory.load(folder) if fusion.remembers else None

    def max_length(self, folder: Path) -> int:
        """How many events of a history this version reads."""
        return int(json.loads((folder / CARD).read_text())["config"]["max_length"])
