"""The beam on a GPU as a CUDA graph: the kernels of a decode recorded once per size and replayed with one launch.

Choices: a decode at batch 1 is some hundred kernels of microseconds, and launching them takes longer than running them. A graph has fixed shapes, so a batch
is padded to the next of a few sizes, histories to the longest the model reads, exclusions to the next of a few counts; what pads has no event and excludes
nothing. A batch above the largest size is cut. Without CUDA this is an error: the same beam runs in `ugt.decoding` and, exported, in `ugt.runtime`.

Shapes: as in `ugt/decoding.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.decoding import Beams, Constraints, beam_search
from ugt.model.inference import encode
from ugt.model.ugt import UGT
from ugt.schema import UGTError

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EXCLUSIONS = (64, 256, 1024, 4096)
WARM_UP = 3  # runs before a recording, so that libraries have made their workspaces


def bucket(size: int, sizes: Sequence[int], what: str) -> int:
    """The smallest of `sizes` that holds `size`. Raises UGTError if none does."""
    found = next((s for s in sizes if s >= size), None)
    if found is None:
        raise UGTError(f"{size:,} {what} are more than a captured decode has room for ({max(sizes):,}). Decode this request without CUDA graphs.")
    return found


def padded(inputs: Mapping[str, Tensor], limits: Constraints, batch: int, events: int, exclusions: int) -> tuple[dict[str, Tensor], Constraints]:
    """Inputs and constraints of B requests as those of `batch` requests with `events` and `exclusions` columns."""
    rows = batch - len(inputs["length_B"])
    wide = {
        name: F.pad(value, (0, events - value.shape[1], 0, rows) if name.endswith("_BL") else (0, 0, 0, rows) if value.dim() == 2 else (0, rows))
        for name, value in inputs.items()
    }
    return wide, limits._replace(
        exclude_BX=F.pad(limits.exclude_BX, (0, exclusions - limits.exclude_BX.shape[1], 0, rows), value=-1),
        filter_B=F.pad(limits.filter_B, (0, rows)),
        prior_BK=F.pad(limits.prior_BK, (0, 0, 0, rows)),
        read_BL=F.pad(limits.read_BL, (0, events - limits.read_BL.shape[1], 0, rows)),
    )


class CapturedDecode:
    """Beam search of one model and beam width on the current CUDA device. Not for several threads: all replays write the same memory."""

    def __init__(self, model: UGT, beam_width: int, batches: Sequence[int] = BATCHES, exclusions: Sequence[int] = EXCLUSIONS):
        """Raises UGTError if there is no CUDA. Graphs are recorded with the first batch of their size."""
        if not torch.cuda.is_available():
            raise UGTError(
                "CUDA graphs are asked for, but torch sees no CUDA device. Use the CUDA build of torch on a machine with a GPU, or decode without them."
            )
        self.model = model.eval().cuda()
        self.batches, self.exclusions = sorted(batches), sorted(exclusions)
        with torch.inference_mode():
            self.tables = self.model.tables()
        self.beam_W = torch.arange(beam_width, device="cuda")
        self.third_C = torch.arange(model.items.largest_group, device="cuda")
        self._recorded: dict[tuple[int, int, int], _Recorded] = {}

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Tensor], limits: Constraints) -> Beams:
        """Beams of the requests, on the CPU. `inputs` are the arrays of `build_inputs`, `limits` those of `constraints`."""
        largest, size = self.batches[-1], len(inputs["length_B"])
        parts = [self._part(inputs, limits, slice(first, first + largest)) for first in range(0, size, largest)]
        return Beams(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _part(self, inputs: Mapping[str, Tensor], limits: Constraints, rows: slice) -> Beams:
        mine = {name: value[rows] for name, value in inputs.items()}
        limits = limits._replace(**{name: getattr(limits, name)[rows] for name in ("exclude_BX", "filter_B", "prior_BK", "read_BL")})
        size = len(mine["length_B"])
        batch = bucket(size, self.batches, "requests")
        exclusions = bucket(limits.exclude_BX.shape[1], self.exclusions, "exclusions")
        given = padded(mine, limits, batch, self.model.config.max_length, exclusions)
        key = (batch, exclusions, len(limits.slot_allowed_FS))
        if key not in self._recorded:
            self._recorded[key] = _Recorded(self, *given)
        return Beams(*(value[:size].cpu() for value in self._recorded[key].replay(*given)))


class _Recorded:
    """A graph, the memory it reads and the memory it writes."""

    def __init__(self, owner: CapturedDecode, inputs: dict[str, Tensor], limits: Constraints):
        self.inputs = {name: value.cuda() for name, value in inputs.items()}
        self.limits = Constraints(*(value.cuda() for value in limits))

        def decode() -> Beams:
            state_BTD = encode(owner.model, self.inputs, owner.tables)
            lengths = self.inputs["length_B"], self.inputs["context_B"]
            return beam_search(owner.model, state_BTD, *lengths, owner.tables, self.limits, owner.beam_W, owner.third_C)

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                decode()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.beams = decode()

    def replay(self, inputs: dict[str, Tensor], limits: Constraints) -> Beams:
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        for static, value in zip(self.limits, limits, strict=True):
            static.copy_(value)
        self.graph.replay()
        return self.beams
