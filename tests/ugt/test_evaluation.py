"""The evaluation's config: unknown baselines are named, SASRec gets UGT's batches."""

from __future__ import annotations

import pytest

from ugt.evaluation import BASELINES, EvaluationConfig
from ugt.model.config import ModelConfig, TrainingConfig
from ugt.schema import UGTError
from ugt.settings import load_settings


def test_an_unknown_baseline_and_a_missing_popularity_are_named() -> None:
    with pytest.raises(UGTError, match=r"evaluation.baselines.0: Input should be 'popularity', .* or 'sasrec'"):
        load_settings(None, {"evaluation.baselines": ["als", "popularity"]})
    with pytest.raises(UGTError, match="popularity is missing"):
        load_settings(None, {"evaluation.baselines": ["item_knn"]})


def test_baselines_are_ordered_and_named_once() -> None:
    assert EvaluationConfig(baselines=(*reversed(BASELINES), "popularity")).baselines == BASELINES
    assert "sasrec" not in EvaluationConfig().baselines  # it trains for minutes
    assert EvaluationConfig(baselines=BASELINES).fitted().names == BASELINES[:-1]


def test_sasrec_gets_the_batches_windows_and_negatives_of_ugt() -> None:
    training = TrainingConfig(batch_size=7, dense_negatives=33, window_overlap=0.25, seed=5)
    settled = EvaluationConfig().sasrec.like(ModelConfig(max_length=9), training)
    assert (settled.batch_size, settled.negatives, settled.window_overlap, settled.max_length, settled.seed) == (7, 33, 0.25, 9, 5)
    assert None not in settled.model_dump().values()
    assert EvaluationConfig(sasrec={"negatives": 1}).sasrec.like(ModelConfig(), training).negatives == 1
