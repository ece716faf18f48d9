"""The one typed Settings: defaults, then a YAML file, then `UGT_*` environment variables, then flags.

Each section is the config class of the thing it configures. `UGT_SERVE__PORT=9000` sets `serve.port`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ugt.evaluation import EvaluationConfig
from ugt.features import FeatureConfig
from ugt.fusion import AutoencoderConfig
from ugt.histories import HistoryConfig
from ugt.model.config import CurvesConfig, DecodingConfig, ExportConfig, ModelConfig, TrainingConfig
from ugt.providers import ExecutionProvider
from ugt.schema import Config, SourceKind, UGTError
from ugt.semantic_ids import SemanticIdConfig
from ugt.synthetic import SampleConfig
from ugt.text import TextConfig
from ugt.word2vec import Word2VecConfig


class EtlConfig(Config):
    """What enters the catalogue and how the work is cut."""

    title_types: tuple[str, ...] = ("movie", "tvMovie", "tvSeries", "tvMiniSeries", "short", "video", "tvSpecial", "tvShort")  # no games, no single episodes
    min_user_events: int = 1
    blocks: int = Field(8, ge=1)  # Ray Data blocks per table; its own default cuts a small file into hundreds
    links: Path | None = None  # a links.csv of another MovieLens version, for one that has none (ids are the same in all)
    plots_dir: Path | None = None  # plot texts and metadata of films (docs/data.md, "Plot texts"), for IMDb and MovieLens
    event_log: Path | None = None  # the system's own events, to be read beside the source's (docs/data.md, "Event log")
    hold_out: float = Field(0.0, ge=0, lt=1)  # share of the items kept from everything that follows, to be inserted as new ones (`ugt.holdout`)
    hold_out_seed: int = 0


class QualityConfig(Config):
    """What the rules of the canonical tables let pass, and which run these tables are compared with."""

    allowed: dict[str, float] = {}  # share of rows that may break a rule, by its name (docs/data.md); what is not named here keeps the rule's own
    against: str = ""  # key or folder of another ETL run; empty: the newest earlier one of the same source files


class StoresConfig(Config):
    """Where state lives. Empty: the embedded server under UGT_HOME/state is started and used."""

    redis_url: str = ""
    milvus_uri: str = ""
    sql_url: str = ""
    online_ttl_days: float = Field(365.0, gt=0)  # of a user's online features after the last event or load; the tables and the event log keep everything


class RetentionConfig(Config):
    """What `ugt data catalog --prune` may remove: nothing younger than this, and nothing that a version or the newest run needs."""

    days: float = Field(90, ge=0)  # of artifacts
    event_log_days: float = Field(365, ge=0)


class ServeConfig(Config):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    exposure_hours: float = 24.0
    candidates: int = 500
    generation_budget_ms: int = 100
    fallback_budget_ms: int = 50
    max_queued_requests: int = 64
    generator_threads: int = 1  # of ONNX Runtime; batches run one at a time
    execution_provider: ExecutionProvider = "cpu"  # of ONNX Runtime; cuda and tensorrt need onnxruntime-gpu
    model_name: str = "ugt"


class RayConfig(Config):
    address: str = ""  # empty: the cluster of the surrounding job, else a local one
    num_cpus: int | None = None  # logical CPUs of a local cluster; at least 4, since actors hold fractions of them
    object_store_mb: int = 512
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = Field(8265, ge=1, le=65435)  # the first of a hundred that are tried


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="UGT_", env_nested_delimiter="__", extra="forbid", frozen=True, protected_namespaces=())

    home: Path = Path(".ugt")
    source: SourceKind = "sample"
    data_dir: Path | None = None
    imdb_dir: Path | None = None
    seed: int = 0
    registry_uri: str = ""  # any pyarrow.fs URI or folder; empty: UGT_HOME/registry

    sample: SampleConfig = SampleConfig()
    etl: EtlConfig = EtlConfig()
    quality: QualityConfig = QualityConfig()
    histories: HistoryConfig = HistoryConfig()
    features: FeatureConfig = FeatureConfig()
    text: TextConfig = TextConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    word2vec: Word2VecConfig = Word2VecConfig()
    semantic_ids: SemanticIdConfig = SemanticIdConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    export: ExportConfig = ExportConfig()
    curves: CurvesConfig = CurvesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    stores: StoresConfig = StoresConfig()
    retention: RetentionConfig = RetentionConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()

    @property
    def registry_location(self) -> str:
        return self.registry_uri or str(self.home.absolute() / "registry")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load_settings` reads the environment itself, between file and flags


def load_settings(path: Path | None = None, flags: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> Settings:
    """Settings from a YAML file (or none; or `base`, what another file holds), the environment and flags, later ones winning.

    A flag is a dotted name: `{"serve.port": 9000}`. Raises UGTError naming the file and the field.
    """
    merged: dict[str, Any] = base or {}
    if path is not None:
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError as error:
            raise UGTError(f"no settings file at {path}. The presets are in configs/.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UGTError(f"the settings file {path} cannot be read ({error}). The presets are in configs/.") from error
        except yaml.YAMLError as error:
            raise UGTError(f"{path} is not valid YAML: {' '.join(str(error).split())}. The presets are in configs/.") from error
        if not isinstance(loaded, dict):
            raise UGTError(f"{path} must hold a mapping of settings, not a {type(loaded).__name__}.")
        merged = loaded
    environment = EnvSettingsSource(Settings)()
    environment.pop("data_dir", None)  # UGT_DATA_DIR is where the tests find real data sets; the data of a run is named by --data-dir or the file
    merged = _deep_merge(merged, environment)
    for name, value in (flags or {}).items():
        if value is None:
            continue
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        merged = _deep_merge(merged, nested)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(x) for x in e['loc'])}: {e['msg']}" for e in error.errors())
        raise UGTError(f"settings are not valid ({path or 'no file'}, UGT_* environment, flags): {problems}") from error
    return _seeded(_settled(settings))


def _settled(settings: Settings) -> Settings:
    """An absolute home. A Ray job runs in a temporary copy of the working tree, so there a relative home means `~/.ugt`."""
    base = Path.cwd()
    if "working_dir_files" in base.parts:
        base = Path.home()
    return settings.model_copy(update={"home": base / settings.home})


def _seeded(settings: Settings) -> Settings:
    """One `seed` reaches every part that has one and was not given its own."""
    update = {}
    for name in ("sample", "autoencoder", "word2vec", "semantic_ids", "training", "curves", "evaluation"):
        section = getattr(settings, name)
        if "seed" not in section.model_fields_set:
            update[name] = section.model_copy(update={"seed": settings.seed})
    return settings.model_copy(update=update)


def _deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _deep_merge(merged[key], value)
        else:
            merged[key] = value
    return merged
