"""The three stages of UGT as sums of loss terms: 1 NTP and dense softmax, 2 with InfoNCE, 3 with DPO against a frozen reference.

A stage is nothing but the weights in its `StageConfig`; a weight above 0 puts its term into the loss (fault 6), 0 leaves it out.

Shapes: B windows, Q targets of a window, M targets of a batch, P positions sampled from them, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ugt.decoding import beam_search, no_constraints
from ugt.losses import dense_softmax, dpo, hierarchical_negatives, info_nce, next_token
from ugt.model.config import StageConfig, TrainingConfig
from ugt.model.embeddings import CatalogueTables
from ugt.model.repeats import read_before
from ugt.model.ugt import UGT, take


class StageObjective(nn.Module):
    """The model with the loss of a stage. `forward` returns sums over this worker's targets; the loop divides by the whole batch's."""

    def __init__(self, model: UGT, stage: StageConfig, training: TrainingConfig, item_counts_N: Tensor):
        super().__init__()
        self.model, self.stage, self.training_config = model, stage, training
        frequency_N = (item_counts_N + 1.0) / (item_counts_N + 1.0).sum()
        self.register_buffer("log_frequency_I", torch.cat([torch.zeros(1), frequency_N.log()]).float(), persistent=False)
        # outside the module tree: the reference is no parameter of this stage and never changes
        self._reference = [copy.deepcopy(model).eval().requires_grad_(False)] if stage.dpo_weight > 0 else []

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each configured term."""
        s = self.stage
        every = {"ntp": s.ntp_weight, "dense": s.dense_weight, "balance": s.balance_weight, "contrastive": s.contrastive_weight, "dpo": s.dpo_weight}
        return {name: weight for name, weight in every.items() if weight > 0}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each configured term by name, summed over the M targets of `batch`, and `loss`, their weighted sum."""
        model, weights, config = self.model, self.weights, self.training_config
        tables = model.tables()
        state_BTD = model.encode(batch, tables)
        position_BQ, target_BQ, context_BQ = batch["position_BQ"], batch["target_BQ"], batch["context_BQ"]
        valid_BQ = target_BQ > 0
        target_M = target_BQ[valid_BQ]
        terms: dict[str, Tensor] = {}
        if "ntp" in weights or "balance" in weights:
            log_prob_M3, balance = model.path_log_probs(state_BTD, position_BQ, context_BQ, target_BQ, tables, batch["item_BL"])
            terms |= {"ntp": next_token(log_prob_M3, config.level_weights).sum(), "balance": balance * len(target_M)}
        if "dense" in weights or "contrastive" in weights:
            user_MD = model.user_vectors(take(state_BTD, position_BQ)[valid_BQ], context_BQ[valid_BQ])
            read_ML = (batch["item_BL"][:, None] * read_before(position_BQ, batch["item_BL"].shape[1]).long())[valid_BQ]
            with drawn_alike(batch):
                terms["dense"] = dense_softmax(user_MD, target_M, tables.item_ID, config.dense_negatives, (read_ML, model.repeats.of_dense)).sum()
            if "contrastive" in weights:
                terms["contrastive"] = self._contrastive(user_MD, target_M, tables)
        if "dpo" in weights:
            terms["dpo"] = self._dpo(batch, state_BTD, tables)
        terms = {name: terms[name] for name in weights}
        return terms | {"loss": torch.stack([weights[name] * value for name, value in terms.items()]).sum()}

    def _contrastive(self, user_MD: Tensor, target_M: Tensor, tables: CatalogueTables) -> Tensor:
        """InfoNCE on P random targets, scaled up to all M."""
        config = self.training_config
        pick_P = torch.randperm(len(target_M))[: config.contrastive_positions]
        if len(pick_P) == 0:
            return user_MD.sum() * 0
        hard_PR = hierarchical_negatives(target_M[pick_P], self.model.items, config.hard_negatives)
        loss_P = info_nce(user_MD[pick_P], target_M[pick_P], hard_PR, tables.item_ID, self.log_frequency_I, config.contrastive_temperature)
        return loss_P.mean() * len(target_M)

    def _dpo(self, batch: dict[str, Tensor], state_BTD: Tensor, tables: CatalogueTables) -> Tensor:
        """DPO on one random target per window, scaled up to all M. Rejected: what the model itself would write there, near the target but not chosen."""
        valid_BQ = batch["target_BQ"] > 0
        pick_B1 = torch.where(valid_BQ, torch.rand(valid_BQ.shape), -1.0).argmax(1, keepdim=True)
        position_B1, target_B1, context_B1 = (batch[name].gather(1, pick_B1) for name in ("position_BQ", "target_BQ", "context_BQ"))
        rejected_B1 = self.rejected(batch, position_B1[:, 0], context_B1[:, 0], target_B1)
        both_B2 = torch.cat([target_B1, rejected_B1], dim=1) * ((rejected_B1 > 0) & (target_B1 > 0))
        position_B2, context_B2 = position_B1.expand(-1, 2), context_B1.expand(-1, 2)
        policy_P2 = self.model.path_log_probs(state_BTD, position_B2, context_B2, both_B2, tables, batch["item_BL"])[0].sum(1).view(-1, 2)
        if len(policy_P2) == 0:
            return state_BTD.sum() * 0
        reference = self._reference[0]
        with torch.no_grad():
            reference_tables = reference.tables()
            state = reference.encode(batch, reference_tables)
            reference_P2 = reference.path_log_probs(state, position_B2, context_B2, both_B2, reference_tables, batch["item_BL"])[0].sum(1).view(-1, 2)
        loss_P = dpo(policy_P2[:, 0], policy_P2[:, 1], reference_P2[:, 0], reference_P2[:, 1], self.training_config.dpo_beta)
        return loss_P.mean() * valid_BQ.sum()

    @torch.no_grad()
    def rejected(self, batch: dict[str, Tensor], position_B: Tensor, context_B: Tensor, target_B1: Tensor) -> Tensor:
        """Rows of the item table [B, 1], 0 where there is none: of the current model's own beam, the candidate that shares the longest prefix with the
        target (the more probable of equals), never an item of the window: what the user watched is not what they rejected."""
        model = self.model
        model.eval()
        tables = model.tables()
        limits = no_constraints(model, len(position_B))._replace(
            read_BL=batch["item_BL"], exclude_BX=distinct(torch.cat([batch["item_BL"], batch["target_BQ"]], dim=1)) - 1
        )
        third_C = torch.arange(model.items.largest_group)
        beams = beam_search(model, model.encode(batch, tables), position_B, context_B, tables, limits, torch.arange(self.training_config.dpo_beam), third_C)
        model.train()
        codes_B13 = model.items.codes_N3[(target_B1 - 1).clamp(min=0)]
        same_BW3 = model.items.codes_N3[beams.item_BW.clamp(min=0)] == codes_B13
        shared_BW = same_BW3[..., 0].long() + (same_BW3[..., 0] & same_BW3[..., 1]).long()
        shared_BW = torch.where(beams.item_BW >= 0, shared_BW * beams.item_BW.shape[1] - torch.arange(beams.item_BW.shape[1]), -(10**6))
        return beams.item_BW.gather(1, shared_BW.argmax(1, keepdim=True)) + 1


@contextmanager
def drawn_alike(batch: dict[str, Tensor]) -> Iterator[None]:
    """Within it, what is drawn follows from the step's seed alone: every worker, and every part of a step, draws the same shared negatives."""
    device = batch["seed"].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(batch["seed"]))
        yield


def distinct(item_BX: Tensor) -> Tensor:
    """Each row's values once, the repeats replaced by 0."""
    ordered_BX = item_BX.sort(dim=1).values
    repeat_BX = torch.zeros_like(ordered_BX, dtype=torch.bool)
    repeat_BX[:, 1:] = ordered_BX[:, 1:] == ordered_BX[:, :-1]
    return ordered_BX.masked_fill(repeat_BX, 0)
