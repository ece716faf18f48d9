"""New items, measured: those that ETL held out are inserted by content into the trained model, and unseen targets are looked for, at what cost for the others.

Choices: the model, its vectors and its codebooks come from a run that never saw the items (`ugt.holdout`). Insertion is the one that serves (`ugt.new_vectors`,
`SemanticIds.insert`, `ugt.insertion`). What decides about the slot is fitted on validation users; test users are looked at once. Lists are filtered.

Shapes: N old items, M new ones, U users, K places of a list, S signals, E columns of evidence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ugt import histories as history_files
from ugt import holdout, metrics, new_items
from ugt.artifacts import CREDITS, EVENTS, ITEMS, PEOPLE, read_table, write_text
from ugt.conditional_logit import ConditionalLogit
from ugt.evaluation import EvaluationConfig
from ugt.features import Vocabulary, encode_features, rows_of
from ugt.fusion import Fusion as Autoencoder
from ugt.histories import Histories, HistoryConfig, Part, Split
from ugt.insertion import Near, grow, unit_rows
from ugt.memory import transition_counts
from ugt.model.config import DecodingConfig
from ugt.model.inputs import History, build_inputs
from ugt.model.ugt import UGT
from ugt.new_items import Gate, Signals, evidence, inherited_transitions, with_slot
from ugt.new_vectors import NewVectors
from ugt.quantizer import Codebooks
from ugt.ranking import fuse
from ugt.schema import UGTError
from ugt.scoring import Ranking, candidates, load_checkpoint, load_ranking, tensors, user_codes
from ugt.semantic_ids import SemanticIdConfig, SemanticIds
from ugt.text import Encoder, TextConfig, item_texts

PLACES = 10  # of a list; one of them is the slot
CANDIDATES = 50  # of the dense head, that are put in order with the others'
BACKWARD = 0.5  # of transitions: what the other direction counts
LOSS = 0.005  # that a gate may cost: of the hits on seen targets, or of the recall itself ("points")


class Seen(NamedTuple):
    """One part of the split, looked at: what the slot is decided and judged by."""

    target_U: np.ndarray
    list_UK: np.ndarray  # the model's own lists, without the new items, from histories without them
    new_U: np.ndarray  # best new item by the mix
    nearest_U: np.ndarray  # best new item by content alone
    evidence_UE: np.ndarray  # what the gate reads


def run(
    etl_dir: Path,
    histories_dir: Path,
    features_dir: Path,
    text_dir: Path | None,
    fusion_dir: Path | None,
    word2vec_dir: Path,
    semantic_ids_dir: Path,
    checkpoint_dir: Path,
    semantic_ids: SemanticIdConfig,
    text: TextConfig,
    config: EvaluationConfig,
    decoding: DecodingConfig,
    out_dir: Path,
    history: HistoryConfig = HistoryConfig(),
) -> dict[str, Any]:
    """Write `new_items.json` (docs/evaluation.md names its fields) and return its headline.

    Raises UGTError if ETL held nothing out, if the split is not leave-one-out, or if no user's target is a new item.
    """
    held_dir = etl_dir / holdout.FOLDER
    if not held_dir.is_dir():
        raise UGTError(f"{etl_dir} holds no items held out. Set etl.hold_out (ugt bench quality --hold-out 0.05).")
    if history.split != "leave_one_out":
        raise UGTError("new items are measured with leave-one-out: a time split moves when events are held out. Set histories.split to leave_one_out.")
    old_ids = SemanticIds.load(semantic_ids_dir)
    model, how = load_checkpoint(checkpoint_dir, semantic_ids_dir), load_ranking(checkpoint_dir)
    vectors = NewVectors.load(semantic_ids, semantic_ids_dir, word2vec_dir, text_dir, fusion_dir)
    contents = _contents(etl_dir, len(old_ids), features_dir, fusion_dir, text if text_dir is not None else None)
    vector_MV, near = vectors.of(*contents)
    held_ids = read_table(held_dir / "items", ITEMS).sort_by("item_index")["item_id"].to_pylist()
    ids = old_ids.insert(held_ids, vector_MV, Codebooks.load(semantic_ids_dir / "codebooks.npz"))
    larger = grow(model, ids, vector_MV, near, free_share(model))
    split, reduced = whole_split(etl_dir, history), history.apply(history_files.load(histories_dir))
    users_U = users_of(split, reduced)
    bench = _Bench(model, larger, how, decoding, split, etl_dir / "users", _signals(larger, vectors, contents, near, reduced))

    validation = bench.look(users_U, "validation")
    is_old_U = validation.target_U < bench.old
    hits = int(_hits(validation.list_UK, validation.target_U)[is_old_U].sum())
    gained_U, lost_U = validation.new_U == validation.target_U, _lost(validation)
    # the same share of two things: of the hits on seen targets, and of the users who have one
    allowed = {"gated_slot": hits, "gated_slot_points": int(is_old_U.sum())}
    gates = {name: Gate.fit(validation.evidence_UE, gained_U, lost_U, of, LOSS, seed=config.seed) for name, of in allowed.items()}
    test = bench.look(users_U, "test")
    report = {"validation": _figures(bench, validation, gates, config), "test": _figures(bench, test, gates, config)}
    unseen_U = users_U[test.target_U >= bench.old]
    report["test"]["unseen"]["own_ranking"] = _both(bench.own_ranking(unseen_U, "test"), split.targets(unseen_U, "test"), config)
    groups = len(np.unique(ids.codes_N3[bench.old :, :2], axis=0))
    whole = {
        "protocol": _protocol(len(held_ids), bench.old, len(users_U), bench.mix, gates, history),
        **report,
        "insertion": {"groups_joined": groups, "largest_group": larger.items.largest_group},
    }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text(out_dir / "new_items.json", json.dumps(whole, indent=1, allow_nan=False))
    unseen, seen = report["test"]["unseen"], report["test"]["seen"]
    return {
        "new_items": len(held_ids),
        "unseen_users": unseen["users"],
        "unseen_recall@10": unseen["slot"]["recall@10"],
        "unseen_nearest_recall@10": unseen["nearest_slot"]["recall@10"],
        "slot_loss": seen["slot"]["loss"]["relative"],
        "gated_unseen_recall@10": unseen["gated_slot"]["recall@10"],
        "gated_slot_loss": seen["gated_slot"]["loss"]["relative"],
        "points_unseen_recall@10": unseen["gated_slot_points"]["recall@10"],
        "points_slot_loss": seen["gated_slot_points"]["loss"]["points"],
    }


def free_share(model: UGT) -> float:
    """How much of its neighbours' free embedding a new item gets: none where the model learned to know items without one."""
    return 0.0 if model.config.cold_share > 0 else 1.0


def whole_split(etl_dir: Path, history: HistoryConfig) -> Split:
    """The split of the histories as they were before the hold-out; held-out items have the indices their insertion gives them."""
    events = [read_table(folder / "events", EVENTS) for folder in (etl_dir, etl_dir / holdout.FOLDER)]
    return history.apply(history_files.of_table(history_files.from_events(pa.concat_tables(events))))


def users_of(split: Split, reduced: Split) -> np.ndarray:
    """Rows of `split` of the users with a target, less those whom the hold-out left too few events: all of these were trained on, targets too."""
    trained_whole = {user_id for user_id, evaluated in zip(reduced.histories.user_ids, reduced.evaluated, strict=True) if not evaluated}
    users_U = split.users("test")
    return users_U[[split.histories.user_ids[u] not in trained_whole for u in users_U]]


def _contents(etl_dir: Path, old: int, features_dir: Path, fusion_dir: Path | None, text: TextConfig | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(text vectors, fused vectors) of the held-out items by the functions of the training; None for what the run has not."""
    items, credits = read_table(etl_dir / holdout.FOLDER / "items", ITEMS).sort_by("item_index"), read_table(etl_dir / holdout.FOLDER / "credits", CREDITS)
    # both functions number the items they are given from 0
    items, credits = (t.set_column(0, t.schema.field(0), pa.array(t["item_index"].to_numpy() - old, pa.int32())) for t in (items, credits))
    text_MT = fused_MW = None
    if text is not None:
        text_MT = Encoder(text).encode(item_texts(items, read_table(etl_dir / "people", PEOPLE), credits, text))
    if fusion_dir is not None:
        autoencoder = Autoencoder.load(fusion_dir)
        features_MF = encode_features(rows_of(items, credits).to_pylist(), Vocabulary.load(features_dir))
        fused_MW = autoencoder.encode(features_MF, text_MT if autoencoder.uses_text else None)
    return text_MT, fused_MW


def _signals(larger: UGT, vectors: NewVectors, contents: tuple[np.ndarray | None, np.ndarray | None], near: Near, reduced: Split) -> Signals:
    import torch

    content_MC = contents[0] if vectors.by_text else contents[1]
    assert content_MC is not None  # `NewVectors.of` refuses

    with torch.no_grad():
        item_ID = larger.tables().item_ID[1:].numpy()
    company_NW = (
        next(iter(vectors.collaborative.values()), vectors.content_NC) if "cooccurrence" not in vectors.collaborative else vectors.collaborative["cooccurrence"]
    )
    content_IC = np.concatenate([vectors.neighbours.content_NC, unit_rows(content_MC - vectors.neighbours.mean_C)])
    company_IW = unit_rows(np.concatenate([company_NW, near.mean(company_NW)]))
    counts_NN = transition_counts(*reduced.train_events(), len(company_NW))
    return Signals(content_IC, company_IW, inherited_transitions(counts_NN + BACKWARD * counts_NN.T, near), item_ID, near)


class _Bench:
    """The models and signals, and a look at a part of the split; the mix is fitted by the first look, which must be at validation."""

    def __init__(
        self,
        model: UGT,
        larger: UGT,
        how: Ranking,
        decoding: DecodingConfig,
        split: Split,
        users_dir: Path,
        signals: Signals,
    ):
        self.model, self.larger, self.decoding, self.split, self.signals = model, larger, decoding, split, signals
        self.fusion, self.memory = how.fusion, how.memory
        self.old, self.codes_UA = len(model.semantic_ids), user_codes(users_dir, split.histories.user_ids, model.vocabulary)
        self._mix: ConditionalLogit | None = None

    @property
    def mix(self) -> ConditionalLogit:
        assert self._mix is not None, "the first look is at validation"
        return self._mix

    def look(self, users_U: np.ndarray, part: Part) -> Seen:
        split, old = self.split, self.old
        target_U, user_UD = split.targets(users_U, part), self._user_vectors(users_U, part)
        before = without_items(split, old, part)
        lists = candidates(self.model, before, users_U, part, True, self.codes_UA[users_U], CANDIDATES, self.decoding, self.memory)
        fused = [fuse(c, self.fusion, PLACES) for c in lists]
        histories = [split.example(int(u), part).items for u in users_U]
        forbidden = [np.setdiff1d(h[h >= old], [t]) - old for h, t in zip(histories, target_U, strict=True)]
        if part == "validation":
            self._mix = self._fit(histories, user_UD, target_U, forbidden)
        list_UK = np.full((len(users_U), PLACES), -1, np.int64)
        new_U, nearest_U = (np.empty(len(users_U), np.int64) for _ in range(2))
        evidence_U = []
        for row, (items_H, (items_K, score_K)) in enumerate(zip(histories, fused, strict=True)):
            list_UK[row, : len(items_K)] = items_K
            signal_MS = self.signals.of(items_H, user_UD[row])
            score_M = self.mix.score(signal_MS, forbidden[row])
            content_M = signal_MS[:, new_items.SIGNALS.index("content_mean")].copy()
            content_M[forbidden[row]] = -np.inf
            new_U[row], nearest_U[row] = old + int(np.argmax(score_M)), old + int(np.argmax(content_M))
            evidence_U.append(evidence(score_M, signal_MS, score_K, len(items_H)))
        return Seen(target_U, list_UK, new_U, nearest_U, np.stack(evidence_U))

    def own_ranking(self, users_U: np.ndarray, part: Part) -> np.ndarray:
        """The grown model's own lists, new items among all others, [U, K]."""
        found = candidates(self.larger, self.split, users_U, part, True, self.codes_UA[users_U], 50, self.decoding, self.memory)
        lists = np.full((len(users_U), PLACES), -1, np.int64)
        for row, c in enumerate(found):
            items = fuse(c, self.fusion, PLACES)[0]
            lists[row, : len(items)] = items
        return lists

    def _fit(self, histories: Sequence[np.ndarray], user_UD: np.ndarray, target_U: np.ndarray, forbidden: Sequence[np.ndarray]) -> ConditionalLogit:
        rows = np.flatnonzero(target_U >= self.old)
        if len(rows) == 0:
            raise UGTError("no user's validation target is an item held out, so nothing can be fitted. Raise etl.hold_out, or change etl.hold_out_seed.")
        signal_UMS = np.stack([self.signals.of(histories[row], user_UD[row]) for row in rows])
        forbidden_UM = np.zeros(signal_UMS.shape[:2], bool)
        for i, row in enumerate(rows):
            forbidden_UM[i, forbidden[row]] = True
        return ConditionalLogit.fit(signal_UMS, target_U[rows] - self.old, forbidden_UM)

    def _user_vectors(self, users_U: np.ndarray, part: Part, batch: int = 128) -> np.ndarray:
        """User vectors of the dense head, [U, D], after histories with the new items in them."""
        import torch

        tables, model = self.larger.tables(), self.larger
        out_UD = np.zeros((len(users_U), model.config.width), np.float32)
        with torch.inference_mode():
            for start in range(0, len(users_U), batch):
                rows = users_U[start : start + batch]
                examples = [self.split.example(int(u), part) for u in rows]
                histories = [History(e.items, e.actions, e.values, e.timestamps) for e in examples]
                inputs = tensors(build_inputs(histories, [e.target_timestamp for e in examples], self.codes_UA[rows], model.config.max_length))
                state_BTD = model.encode(inputs, tables)
                last_BD = state_BTD[torch.arange(len(rows)), inputs["length_B"]]
                out_UD[start : start + batch] = model.user_vectors(last_BD, inputs["context_B"]).numpy()
        return out_UD


def without_items(split: Split, old: int, part: Part) -> Split:
    """The split as a model that knows only the items 0..old-1 sees it: other events are gone from the histories before the targets of `part`.

    The targets themselves stay in their place, also those it doesn't know: nothing reads them but the filter, which lets them through.
    """
    h, at_U = split.histories, split.at(part)
    place_E = np.arange(len(h.items)) - np.repeat(h.offsets[:-1], h.lengths)
    keep_E = (h.items < old) | (place_E == np.repeat(at_U, h.lengths))
    kept_before = np.concatenate([[0], np.cumsum(keep_E)])
    offsets = kept_before[h.offsets]
    moved_U = np.where(at_U >= 0, kept_before[h.offsets[:-1] + np.maximum(at_U, 0)] - offsets[:-1], -1)
    less = Histories(h.user_ids, offsets, h.items[keep_E], h.actions[keep_E], h.values[keep_E], h.timestamps[keep_E])
    return Split(less, np.zeros(len(h), np.int64), moved_U, moved_U)


def _hits(list_UK: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    return (list_UK == target_U[:, None]).any(1)


def _lost(seen: Seen) -> np.ndarray:
    """Whose target the slot would drive out of the list."""
    slot_UK = with_slot(seen.list_UK, seen.new_U, np.ones(len(seen.new_U), bool), PLACES)
    return _hits(seen.list_UK, seen.target_U) & ~_hits(slot_UK, seen.target_U)


def _both(list_UK: np.ndarray, target_U: np.ndarray, evaluation: EvaluationConfig) -> dict[str, Any]:
    """recall@10 and ndcg@10 with their intervals."""
    values = metrics.of_places(metrics.places(list_UK, target_U), (PLACES,))
    out: dict[str, Any] = {}
    for name in ("recall@10", "ndcg@10"):
        drawn = metrics.bootstrap_means(values[name][:, None], evaluation.bootstrap_samples, evaluation.seed)[:, 0]
        out |= {name: float(values[name].mean()), f"{name}_interval": [float(x) for x in metrics.bounds(drawn)]}
    return out


def _figures(bench: _Bench, seen: Seen, gates: Mapping[str, Gate], evaluation: EvaluationConfig) -> dict[str, Any]:
    """Unseen and seen targets under each rule of the slot, and the share of lists that hold a new item."""
    always_U = np.ones(len(seen.target_U), bool)
    open_NU = {name: gate.opens(seen.evidence_UE) for name, gate in gates.items()}
    lists = {
        "model": seen.list_UK,
        "nearest_slot": with_slot(seen.list_UK, seen.nearest_U, always_U, PLACES),
        "slot": with_slot(seen.list_UK, seen.new_U, always_U, PLACES),
    } | {name: with_slot(seen.list_UK, seen.new_U, open_U, PLACES) for name, open_U in open_NU.items()}
    is_new_U = seen.target_U >= bench.old
    unseen: dict[str, Any] = {"users": int(is_new_U.sum())}
    known: dict[str, Any] = {"users": int((~is_new_U).sum())}
    every: dict[str, Any] = {"users": len(is_new_U)}
    for name, list_UK in lists.items():
        unseen[name] = _both(list_UK[is_new_U], seen.target_U[is_new_U], evaluation)
        every[name] = _both(list_UK, seen.target_U, evaluation)
        known[name] = _both(list_UK[~is_new_U], seen.target_U[~is_new_U], evaluation)
        if name != "model":
            known[name]["loss"] = _loss(seen.list_UK[~is_new_U], list_UK[~is_new_U], seen.target_U[~is_new_U], evaluation)
    return {"unseen": unseen, "seen": known, "all": every, "gate_open": {name: float(open_U.mean()) for name, open_U in open_NU.items()}}


def _loss(before_UK: np.ndarray, after_UK: np.ndarray, target_U: np.ndarray, evaluation: EvaluationConfig) -> dict[str, Any]:
    """What other lists cost seen targets in recall@10: `relative`, and as a difference in percentage `points`; below 0: a gain. Both with intervals."""
    before_U, after_U = _hits(before_UK, target_U).astype(float), _hits(after_UK, target_U).astype(float)
    drawn_S2 = metrics.bootstrap_means(np.stack([before_U, after_U], 1), evaluation.bootstrap_samples, evaluation.seed)
    lost_S = drawn_S2[:, 0] - drawn_S2[:, 1]
    relative_S = lost_S / np.maximum(drawn_S2[:, 0], 1e-12)
    lost = float(before_U.mean() - after_U.mean())
    return {
        "relative": lost / max(float(before_U.mean()), 1e-12),
        "relative_interval": [float(x) for x in metrics.bounds(relative_S)],
        "points": 100 * lost,
        "points_interval": [float(x) for x in metrics.bounds(100 * lost_S)],
    }


def _protocol(held: int, old: int, users: int, mix: ConditionalLogit, gates: Mapping[str, Gate], history: HistoryConfig) -> dict[str, Any]:
    """How these figures came about."""
    return {
        "held_out_items": held,
        "share": held / (held + old),
        "users_evaluated": users,
        "split": "leave-one-out of the whole histories; the model was trained on what the hold-out left of them",
        "split_settings": history.model_dump(mode="json"),
        "unseen": "users whose test target is held out; seen: all others. A history holds the new items that came before its target, as inserted",
        "slot": f"place {PLACES} of a list of {PLACES}; `slot`: always, `nearest_slot`: always, by content alone, `gated_*`: where a gate opens",
        "filter_rule": "items of the history are removed from lists and from the choice of the new item, except the target",
        "chosen_on": "validation",
        "loss_allowed": {"gated_slot": f"{LOSS:g} of the hits on seen targets", "gated_slot_points": f"{LOSS:g} of the users with a seen target"},
        "mix": {name: round(float(weight), 4) for name, weight in zip(new_items.SIGNALS, mix.weight_S, strict=True)},
        "thresholds": {name: float(gate.threshold) if np.isfinite(gate.threshold) else None for name, gate in gates.items()},
    }
