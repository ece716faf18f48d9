"""The steps of the main job: source -> tables -> vectors -> semantic IDs -> UGT -> evaluation -> ONNX, and those that are made when asked for.

A step is one function of a stage, named with what it reads and which settings change it. `ray_app.pipeline` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ugt.settings import Settings


@dataclass(frozen=True)
class Context:
    """What a step's arguments are made from: settings, the folders of the steps it needs, its own folders."""

    settings: Settings
    paths: Mapping[str, Path]
    out: Path
    work: Path

    def source_dirs(self) -> tuple[Path | None, Path | None]:
        """Folders of the source's files and of IMDb's; the sample's own when it is generated."""
        if self.settings.source == "sample":
            return self.paths["source"] / "movielens", self.paths["source"] / "imdb"
        return self.settings.data_dir, self.settings.imdb_dir


@dataclass(frozen=True)
class Step:
    name: str
    what: str
    function: str  # module:function of a stage
    needs: tuple[str, ...]
    reads: Callable[[Settings], Iterable[BaseModel]]
    arguments: Callable[[Context], dict[str, Any]]
    shown: tuple[str, ...] = ()  # figures of the progress line
    version: int = 1  # raised when the step's code changes what it writes
    only: Callable[[Settings], bool] = lambda s: True
    guards: bool = False  # run whenever what it needs is, though no step reads it: where it fails, the run stops
    page: str = ""  # a file of its folder that a person reads: named on the progress line


def stages(settings: Settings) -> list[int]:
    """The stages that are trained: 1, and those of 2 and 3 that are given any time."""
    return [n for n in (1, 2, 3) if n == 1 or getattr(settings.training, f"stage{n}").trains]


def last_stage(settings: Settings) -> str:
    """Name of the step whose checkpoint is evaluated and served."""
    return f"ugt_stage{stages(settings)[-1]}"


def checkpoint(paths: Mapping[str, Path], before: int = 4) -> Path | None:
    """The checkpoint of the last stage below `before` that was trained."""
    return next((paths[f"ugt_stage{n}"] for n in range(before - 1, 0, -1) if f"ugt_stage{n}" in paths), None)


def _stage(number: int) -> Step:
    return Step(
        name=f"ugt_stage{number}",
        what=("next-token prediction", "with contrastive loss", "with DPO")[number - 1],
        function="train.ugt:run",
        needs=("etl", "histories", "semantic_ids", *(f"ugt_stage{n}" for n in range(1, number))),
        reads=lambda s: [s.model, s.training.of_stage(number).of_result(), s.histories],
        arguments=lambda c: {
            "stage": number,
            "histories_dir": c.paths["histories"],
            "users_dir": c.paths["etl"] / "users",
            "semantic_ids_dir": c.paths["semantic_ids"],
            "model_config": c.settings.model,
            "training": c.settings.training.of_stage(number),
            "history": c.settings.histories,
            "init_dir": checkpoint(c.paths, number) if number > 1 else Path(c.settings.training.warm_start) if c.settings.training.warm_start else None,
            "out_dir": c.out,
            "work_dir": c.work,
        },
        shown=("epochs", "loss", "validation_ndcg@10", "fused_validation_ndcg@10"),
        version=3,
        only=lambda s: number in stages(s),
    )


STAGES = ("ugt_stage1", "ugt_stage2", "ugt_stage3")

STEPS: tuple[Step, ...] = (
    Step(
        name="source",
        what="generating the sample catalogue and event log",
        function="ugt.synthetic:write_sample",
        needs=(),
        reads=lambda s: [s.sample],
        arguments=lambda c: {"config": c.settings.sample, "out_dir": c.out},
        shown=("titles", "users", "events"),
        only=lambda s: s.source == "sample",
    ),
    Step(
        name="etl",
        what="source files to canonical tables",
        function="data.etl:run",
        needs=("source",),
        reads=lambda s: [s.etl, s.sample] if s.source == "imdb" else [s.etl],
        arguments=lambda c: {
            "kind": c.settings.source,
            "data_dir": c.source_dirs()[0],
            "imdb_dir": c.source_dirs()[1],
            "config": c.settings.etl,
            "sample": c.settings.sample,
            "home": c.settings.home,
            "out_dir": c.out,
        },
        shown=("items", "users", "events", "quarantined"),
        version=2,
    ),
    Step(
        name="quality",
        what="rules, profile and drift of the canonical tables",
        function="data.quality_report:run",
        needs=("etl",),
        reads=lambda s: [s.quality],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "config": c.settings.quality,
            "out_dir": c.out,
            "work_dir": c.work,
            "against_dir": c.paths.get("against"),  # the pipeline's: another run of the ETL, whose key is in this step's too
        },
        shown=("rules", "drift"),
        guards=True,
        page="quality.html",
    ),
    Step(
        name="histories",
        what="events to user histories",
        function="data.histories:run",
        needs=("etl",),
        reads=lambda s: [s.histories],
        arguments=lambda c: {"etl_dir": c.paths["etl"], "config": c.settings.histories, "out_dir": c.out},
        shown=("users", "evaluated_users"),
    ),
    Step(
        name="features",
        what="item features",
        function="data.features:run",
        needs=("etl",),
        reads=lambda s: [s.features],
        arguments=lambda c: {"etl_dir": c.paths["etl"], "config": c.settings.features, "out_dir": c.out},
        shown=("items", "width"),
        version=2,
    ),
    Step(
        name="text",
        what="text vectors (MiniLM)",
        function="data.text:run",
        needs=("etl",),
        reads=lambda s: [s.text],
        arguments=lambda c: {"etl_dir": c.paths["etl"], "config": c.settings.text, "out_dir": c.out, "cache_dir": c.settings.home / "cache" / "text"},
        shown=("items", "width", "cached"),
        only=lambda s: s.text.enabled,
    ),
    Step(
        name="fusion",
        what="autoencoder over features and text",
        function="train.autoencoder:run",
        needs=("features", "text"),
        reads=lambda s: [s.autoencoder],
        arguments=lambda c: {
            "features_dir": c.paths["features"],
            "text_dir": c.paths.get("text"),
            "config": c.settings.autoencoder,
            "out_dir": c.out,
            "work_dir": c.work,
        },
        shown=("width", "loss"),
        only=lambda s: s.semantic_ids.fused_weight > 0,
    ),
    Step(
        name="corpus",
        what="sentences of catalogue and histories",
        function="data.corpus:run",
        needs=("etl", "histories"),
        reads=lambda s: [s.word2vec.corpus(), s.histories],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "histories_dir": c.paths["histories"],
            "config": c.settings.word2vec.corpus(),
            "history": c.settings.histories,
            "out_dir": c.out,
        },
        shown=("sentences", "words"),
    ),
    Step(
        name="word2vec",
        what="co-occurrence vectors",
        function="train.word2vec:run",
        needs=("etl", "histories", "corpus"),
        reads=lambda s: [s.word2vec, s.histories],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "histories_dir": c.paths["histories"],
            "corpus_dir": c.paths["corpus"],
            "config": c.settings.word2vec,
            "history": c.settings.histories,
            "out_dir": c.out,
        },
        shown=("tokens", "epochs", "width"),
    ),
    Step(
        name="semantic_ids",
        what="three codes for every item",
        function="train.semantic_ids:run",
        needs=("etl", "text", "fusion", "word2vec"),
        reads=lambda s: [s.semantic_ids],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "fusion_dir": c.paths.get("fusion"),
            "text_dir": c.paths.get("text"),
            "word2vec_dir": c.paths["word2vec"],
            "config": c.settings.semantic_ids,
            "out_dir": c.out,
        },
        shown=("l1", "l2", "l3", "collisions", "overflow"),
        version=2,
    ),
    _stage(1),
    _stage(2),
    _stage(3),
    Step(
        name="baselines",
        what="what every model must beat, chosen on validation",
        function="train.baselines:run",
        needs=("etl", "histories", "word2vec"),
        reads=lambda s: [s.evaluation.fitted(), s.histories],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "histories_dir": c.paths["histories"],
            "word2vec_dir": c.paths["word2vec"],
            "config": c.settings.evaluation.fitted(),
            "history": c.settings.histories,
            "out_dir": c.out,
        },
        shown=("baselines", "transitions_validation_ndcg@10", "word2vec_validation_ndcg@10"),
    ),
    Step(
        name="sasrec",
        what="SASRec on the same windows and negatives",
        function="train.sasrec:run",
        needs=("etl", "histories"),
        reads=lambda s: [s.evaluation.sasrec.like(s.model, s.training), s.histories],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "histories_dir": c.paths["histories"],
            "config": c.settings.evaluation.sasrec.like(c.settings.model, c.settings.training),
            "history": c.settings.histories,
            "out_dir": c.out,
            "work_dir": c.work,
        },
        shown=("epochs", "best_epoch", "loss", "validation_ndcg@10"),
        only=lambda s: "sasrec" in s.evaluation.baselines,
    ),
    Step(
        name="evaluate",
        what="UGT and the baselines on held-out events",
        function="train.evaluate:run",
        needs=("source", "etl", "histories", "semantic_ids", *STAGES, "baselines", "sasrec"),
        reads=lambda s: [s.evaluation, s.decoding, s.histories],
        arguments=lambda c: {
            "histories_dir": c.paths["histories"],
            "users_dir": c.paths["etl"] / "users",
            "semantic_ids_dir": c.paths["semantic_ids"],
            "checkpoint_dir": checkpoint(c.paths),
            "baselines_dir": c.paths["baselines"],
            "sasrec_dir": c.paths.get("sasrec"),
            "truth": _truth(c),
            "curve_dirs": curve_dirs(c.paths),
            "config": c.settings.evaluation,
            "decoding": c.settings.decoding,
            "history": c.settings.histories,
            "out_dir": c.out,
        },
        shown=("recall@10", "transitions_recall@10", "sasrec_recall@10", "popularity_recall@10", "item_knn_recall@10", "oracle_recall@10"),
        version=3,
    ),
    Step(
        name="export",
        what="the constrained decode as ONNX",
        function="train.export:run",
        needs=("etl", "histories", "semantic_ids", *STAGES, "evaluate"),
        reads=lambda s: [s.decoding, s.histories, s.export],
        arguments=lambda c: {
            "checkpoint_dir": checkpoint(c.paths),
            "semantic_ids_dir": c.paths["semantic_ids"],
            "etl_dir": c.paths["etl"],
            "histories_dir": c.paths["histories"],
            "evaluate_dir": c.paths["evaluate"],
            "decoding": c.settings.decoding,
            "history": c.settings.histories,
            "config": c.settings.export,
            "out_dir": c.out,
        },
        shown=("same_top10", "max_difference", "exact_same_top10", "megabytes"),
        version=4,
    ),
)
STEP_NAMES = tuple(step.name for step in STEPS)
# no part of the main job: run when asked for
ON_REQUEST: tuple[Step, ...] = (
    Step(
        name="curves",
        what="accuracy against diversity of the decoding strategies",
        function="train.curves:run",
        needs=("etl", "histories", "semantic_ids", *STAGES),
        reads=lambda s: [s.curves, s.decoding, s.histories],
        arguments=lambda c: {
            "histories_dir": c.paths["histories"],
            "users_dir": c.paths["etl"] / "users",
            "semantic_ids_dir": c.paths["semantic_ids"],
            "checkpoint_dir": checkpoint(c.paths),
            "config": c.settings.curves,
            "decoding": c.settings.decoding,
            "history": c.settings.histories,
            "out_dir": c.out,
        },
        shown=("users", "settings", "beam_recall@10", "beam_diversity@10"),
    ),
    Step(
        name="new_items",
        what="items held out, inserted by content",
        function="train.new_items:run",
        needs=("etl", "histories", "features", "text", "fusion", "word2vec", "semantic_ids", *STAGES),
        reads=lambda s: [s.semantic_ids, s.text, s.evaluation, s.decoding, s.histories],
        arguments=lambda c: {
            "etl_dir": c.paths["etl"],
            "histories_dir": c.paths["histories"],
            "features_dir": c.paths["features"],
            "text_dir": c.paths.get("text"),
            "fusion_dir": c.paths.get("fusion"),
            "word2vec_dir": c.paths["word2vec"],
            "semantic_ids_dir": c.paths["semantic_ids"],
            "checkpoint_dir": checkpoint(c.paths),
            "semantic_ids": c.settings.semantic_ids,
            "text": c.settings.text,
            "config": c.settings.evaluation,
            "decoding": c.settings.decoding,
            "history": c.settings.histories,
            "out_dir": c.out,
        },
        shown=("new_items", "unseen_users", "unseen_recall@10", "slot_loss", "gated_unseen_recall@10", "gated_slot_loss"),
        version=3,
    ),
)


def _truth(c: Context) -> Path | None:
    for folder in (c.paths.get("source"), c.paths["etl"]):
        if folder is not None and (folder / "truth.parquet").is_file():
            return folder / "truth.parquet"
    return None


def curve_dirs(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Folders of the training curves, by the name of the training."""
    steps = {"stage 1": "ugt_stage1", "stage 2": "ugt_stage2", "stage 3": "ugt_stage3", "sasrec": "sasrec"}
    return {name: paths[step] for name, step in steps.items() if step in paths}
