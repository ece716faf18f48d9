"""What an evaluation is asked for: the baselines that stand beside UGT, cut-offs, resamples. No torch here, so that the command line starts fast."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from ugt.model.config import ModelConfig, TrainingConfig
from ugt.schema import Config

Baseline = Literal["popularity", "popularity_by_segment", "item_knn", "word2vec", "transitions", "sasrec"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


class SasRecConfig(Config):
    """SASRec as its paper sets it for Amazon's sparse sets (Kang and McAuley, 2018, section IV.D: two blocks, one head, dropout .5; they use .2 for
    MovieLens-1M), but trained by softmax over shared negatives at every position, which is what makes it strong (Klenitskiy and Vasilev, 2023;
    Petrov and Macdonald, 2023). What is None is UGT's own, so that both see the same batches, the same windows and as many negatives."""

    width: int = Field(64, ge=8)  # the paper has 50; 64 is UGT's
    blocks: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    learning_rate: float = Field(3e-3, gt=0)  # validation NDCG@10 on Beauty: .0541 after 14 epochs, where the paper's .001 needs 30 (.0543)
    warmup: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(20, ge=1)  # the best on validation is kept
    gradient_clip: float = Field(1.0, gt=0)
    max_length: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    window_overlap: float | None = Field(None, ge=0, lt=1)
    negatives: int | None = Field(None, ge=0)  # 0: softmax over the whole catalogue
    validation_users: int | None = Field(None, ge=1)
    validate_every: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    seed: int | None = None

    def like(self, model: ModelConfig, training: TrainingConfig) -> SasRecConfig:
        """Every None filled in with what UGT has there."""
        own = {
            "max_length": model.max_length,
            "batch_size": training.batch_size,
            "window_overlap": training.window_overlap,
            "negatives": training.dense_negatives,
            "validation_users": training.validation_users,
            "validate_every": training.validate_every,
            "threads": training.threads,
            "seed": training.seed,
        }
        return self.model_copy(update={name: value for name, value in own.items() if getattr(self, name) is None})


class BaselineConfig(Config):
    """How the baselines that need no training loop are fitted."""

    names: tuple[Baseline, ...]
    knn_neighbours: int = Field(200, ge=1)
    validation_users: int = Field(2000, ge=1)  # on whom pooling and weights are chosen
    seed: int = 0


class EvaluationConfig(Config):
    top_k: int = Field(50, ge=10)
    bootstrap_samples: int = Field(1000, ge=1)
    baselines: tuple[Baseline, ...] = ("popularity", "popularity_by_segment", "item_knn", "word2vec", "transitions")  # those that cost seconds; sasrec trains
    knn_neighbours: int = Field(200, ge=1)
    sasrec: SasRecConfig = SasRecConfig()
    seed: int = 0

    @field_validator("baselines")
    @classmethod
    def _known_and_once(cls, names: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if "popularity" not in names:
            raise ValueError("popularity is missing: whether the evaluation leaks is judged by it. Add it")
        return tuple(name for name in BASELINES if name in names)

    def fitted(self) -> BaselineConfig:
        """What the step that fits the cheap ones reads."""
        return BaselineConfig(names=tuple(n for n in self.baselines if n != "sasrec"), knn_neighbours=self.knn_neighbours, seed=self.seed)
