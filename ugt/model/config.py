"""Configs of the model, its training stages and its decoding. No torch here, so that the command line starts fast."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ugt.model.inputs import EVENT_ATTRIBUTES, USER_ATTRIBUTES
from ugt.schema import Config, DecodingStrategy

Precision = Literal["fp32", "fp16", "int8"]


class ModelConfig(Config):
    """Sizes of the UGT. The defaults are the CPU size: about a million parameters plus one row of `width` per item."""

    width: int = Field(64, ge=8)
    encoder_layers: int = Field(2, ge=1)
    decoder_layers: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    encoder_block: Literal["attention", "hstu"] = "attention"  # hstu: gated sums with relative position and time instead of softmax and feed-forward
    event_attributes: tuple[str, ...] = ("action", "value", "gap")  # what an event's token carries beside its item; `ugt.model.inputs` has them all
    user_attributes: tuple[str, ...] = ("gender", "age", "occupation")
    max_length: int = Field(50, ge=1)  # events of history the encoder reads; longer ones train in windows
    feed_forward: int = Field(2, ge=1)  # hidden width of a feed-forward block, in multiples of `width`
    experts: int = Field(4, ge=1)  # within noise below 10M parameters (early experiment), kept for the larger sizes
    experts_per_token: int = Field(2, ge=1)
    expert_width: int = Field(1, ge=1)  # hidden width of one expert, in multiples of `width`
    shared_expert: bool = False  # one more expert that every token passes through
    capacity_factor: float = Field(1.5, gt=0)  # training only: an expert takes at most this multiple of its fair share
    router_jitter: float = Field(0.01, ge=0, lt=1)
    encoder_dropout: float = Field(0.2, ge=0, lt=1)  # .25-.3 encoder, .1-.15 decoder won the early experiment
    decoder_dropout: float = Field(0.1, ge=0, lt=1)
    temperature: float = Field(1.0, gt=0)  # of the dense head
    cold_share: float = Field(0.0, ge=0, lt=1)  # share of the items that a training step sees as new ones: `ugt.insertion`; needs semantic_ids.estimate

    @model_validator(mode="after")
    def _attributes_exist(self) -> ModelConfig:
        for field, known in (("event_attributes", EVENT_ATTRIBUTES), ("user_attributes", USER_ATTRIBUTES)):
            unknown = sorted(set(getattr(self, field)) - set(known))
            if unknown:
                raise ValueError(f"{field} has no {', '.join(unknown)}: there are {', '.join(known)}. A new one is a class in ugt/model/inputs.py")
        if self.encoder_block == "hstu" and "gap" not in self.event_attributes:
            raise ValueError("encoder_block hstu reads the time between events: add gap to event_attributes, or set encoder_block to attention")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}: change one of them, each head has an equal share of the width")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than experts {self.experts}: lower the first or raise the second")
        return self


STAGES = ("stage1", "stage2", "stage3")


class StageConfig(Config):
    """One stage of training: how long, how fast, and the weight of each term of its loss (0 leaves a term out)."""

    epochs: int = Field(8, ge=0)
    seconds: float = Field(0.0, ge=0)  # most wall time: the stage then ends, and its schedule with it, by the clock or after `epochs`; 0: no limit
    learning_rate: float = Field(7e-3, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps
    ntp_weight: float = Field(1.0, ge=0)
    dense_weight: float = Field(1.0, ge=0)
    balance_weight: float = Field(0.01, ge=0)
    contrastive_weight: float = Field(0.0, ge=0)
    dpo_weight: float = Field(0.0, ge=0)

    @property
    def trains(self) -> bool:
        return self.epochs > 0


class TrainingConfig(Config):
    """What the three stages share."""

    batch_size: int = Field(64, ge=1)  # windows of history per step, over all workers
    accumulation: int = Field(1, ge=1)  # parts a step is cut into, to save memory: the gradient is that of the whole
    workers: int = Field(1, ge=1)  # Ray Train workers
    min_workers: int = Field(0, ge=0)  # elastic: go on with as few as these when a node is lost; 0: exactly `workers`
    strategy: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: int = Field(1, ge=0, le=3)  # of deepspeed: what is spread over workers: 1 moments, 2 and gradients, 3 and weights
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 products on a GPU that has them, fp32 on a CPU
    threads: int = Field(2, ge=1)  # torch threads of a worker
    seed: int = 0
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # of the averaged weights that are validated and kept; 0: no average
    window_overlap: float = Field(0.5, ge=0, lt=1)  # of consecutive windows of a long history; each target counts once per epoch
    level_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the three codes in the NTP loss
    dense_negatives: int = Field(512, ge=0)  # shared by the batch; 0: softmax over the whole catalogue
    contrastive_temperature: float = Field(0.5, gt=0)
    contrastive_positions: int = Field(256, ge=1)  # positions of a batch that enter InfoNCE
    hard_negatives: int = Field(4, ge=0)  # per position: as many of the same L1, as many of the same (L1, L2)
    dpo_beta: float = Field(0.1, gt=0)
    dpo_beam: int = Field(10, ge=2)  # on-policy candidates a rejected item is taken from
    validation_users: int = Field(600, ge=1)
    validation_beam: int = Field(20, ge=1)
    validate_every: int = Field(2, ge=1)  # epochs; the last one is always validated
    patience: int = Field(0, ge=0)  # validations without a new best after which a stage ends; 0: never
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # of the learning rate after its warm-up
    warm_start: str = ""  # stage 1 begins with the weights in this folder, a checkpoint or an exported version (`ugt train ugt --from`); empty: anew
    stage1: StageConfig = StageConfig()
    stage2: StageConfig = StageConfig(epochs=2, learning_rate=5e-4, contrastive_weight=0.1)
    stage3: StageConfig = StageConfig(epochs=1, learning_rate=2e-4, dpo_weight=0.05)

    @model_validator(mode="before")
    @classmethod
    def _stages_are_whole(cls, given: Any) -> Any:
        """A stage of which one field is set keeps its own other fields: stage 2 with another learning rate is still contrastive."""
        if not isinstance(given, dict):
            return given
        stages = {name: cls.model_fields[name].default.model_dump() | given[name] for name in STAGES if isinstance(given.get(name), dict)}
        return given | stages

    @model_validator(mode="after")
    def _workers_fit(self) -> TrainingConfig:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}: lower the first or raise the second")
        return self

    def of_stage(self, number: int) -> TrainingConfig:
        """What stage `number` reads, all else at its default: a change of anything else must not train it again."""
        stage: StageConfig = getattr(self, f"stage{number}")
        unread = {"stage1", "stage2", "stage3"} - {f"stage{number}"} | ({"warm_start"} if number > 1 else set())
        for weight, fields in OF_TERM.items():
            if getattr(stage, weight) == 0:
                unread |= fields
        return self.model_copy(update={name: _default(name) for name in unread})

    def of_result(self) -> TrainingConfig:
        """Without what only says where and how fast the work is done: a finished stage is not trained again because the machine is another. With a budget of
        seconds the speed decides how far a stage comes, so there everything counts."""
        if self.stage1.seconds or self.stage2.seconds or self.stage3.seconds:
            return self
        return self.model_copy(update={name: _default(name) for name in PLACEMENT})


PLACEMENT = frozenset({"workers", "min_workers", "threads", "strategy", "zero_stage"})
# what is read only where the stage gives a term of the loss a weight
OF_TERM: dict[str, set[str]] = {
    "contrastive_weight": {"contrastive_temperature", "contrastive_positions", "hard_negatives"},
    "dpo_weight": {"dpo_beta", "dpo_beam"},
}


def _default(name: str) -> Any:
    return TrainingConfig.model_fields[name].default


class DecodingConfig(Config):
    """How items are generated: what `ugt evaluate` ranks with, and what a request gets that names no strategy of its own."""

    strategy: DecodingStrategy = "beam"
    beam_width: int = Field(50, ge=1)
    # the last three: where the curves in docs/decoding.md begin to cost more accuracy than they give diversity or coverage
    diversity_penalty: float = Field(0.3, ge=0, le=100)  # diverse_beam: nats per item chosen before with the same L1, and again with the same (L1, L2)
    temperature: float = Field(0.5, ge=0.05, le=100)  # nucleus
    top_p: float = Field(0.5, ge=0, le=1)  # nucleus: share of each level's probability that is sampled from


class CurvesConfig(Config):
    """Where `ugt evaluate --curves` measures accuracy against diversity, on validation users."""

    users: int = Field(2000, ge=1)  # a random set
    diversity_penalty: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0)  # of diverse_beam
    temperature: tuple[float, ...] = (0.5, 0.75, 1.0)  # of nucleus, with each top_p
    top_p: tuple[float, ...] = (0.3, 0.5, 0.9)
    seed: int = 0


class ExportConfig(Config):
    """In which number format the graphs of a version are written."""

    precision: Precision = "fp32"  # int8: a fifth faster in batches on a CPU, 2 to 3% of a top 10 are other items; fp16: for GPUs, slower on a CPU
