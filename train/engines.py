"""How a step is carried out: plain PyTorch (DDP on several workers), or DeepSpeed ZeRO 0-3. One interface, one form of state.

Choices: what is saved knows nothing of how it was spread: weights and AdamW's moments whole and by parameter name, so a training goes on under another
number of workers or another strategy. ZeRO's parts are gathered for it, in which *every* rank takes part; rank 0 then writes one file.
DeepSpeed trains a copy: its hooks and partitions stay out of the model that is validated, exported and handed on.
Losses are sums over a worker's targets and gradients are averaged over workers, hence the factor in `backward`.
Source: Rajbhandari et al. 2020 (ZeRO); Loshchilov and Hutter 2019 (AdamW).
"""

from __future__ import annotations

import copy
import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ugt.schema import UGTError

MOMENTS = ("exp_avg", "exp_avg_sq")
Batch = dict[str, Tensor]
State = dict[str, dict[str, Any]]


def check(strategy: str) -> None:
    """Raises UGTError if a strategy's package is not installed."""
    if strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UGTError("training.strategy is deepspeed, but the package deepspeed is not installed. Run `pip install deepspeed==0.19.8`, or set it to ddp.")


def autocast(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> AbstractContextManager[Any]:
    """Where matrix products run in bf16: if asked for, and by default on a GPU that has it."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def placed(device: torch.device) -> AbstractContextManager[Any]:
    """Where new tensors are made on the device. Nothing on a CPU, where it would only cost time at every operation."""
    return nullcontext() if device.type == "cpu" else device


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Weight decay for matrices of weights; none for biases, norms and embeddings."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


class TorchEngine:
    """The objective itself; DistributedDataParallel around it when there are workers to agree with."""

    def __init__(self, objective: nn.Module, model: nn.Module, learning_rate: float, weight_decay: float, gradient_clip: float, accumulation: int):
        self.model, self.gradient_clip = model, gradient_clip
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.optimizer = adamw(model, learning_rate, weight_decay)
        self._objective = objective
        self.module: nn.Module = objective
        self._weights = [p.detach() for p in model.parameters()]

    def start(self, weights: dict[str, Tensor] | None, moments: State | None, first_batch: Callable[[], Batch]) -> None:
        """Begin, from a checkpoint's weights and moments if there are any; `first_batch` is a batch of this worker."""
        if weights is not None and moments is not None:
            self.model.load_state_dict(weights)
            for name, p in self.model.named_parameters():
                if name in moments:
                    self.optimizer.state[p] = {key: value.to(p.device) if key in MOMENTS else value.clone() for key, value in moments[name].items()}
        if self.workers > 1:
            # buffers are the catalogue's arrays, the same on every worker: sent with each step they cost more than the gradients
            self.module = nn.parallel.DistributedDataParallel(
                self._objective, find_unused_parameters=True, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor, targets: int) -> None:
        (loss * (self.workers / max(1, targets))).backward()

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Around one forward and backward of a step's parts: gradients are exchanged in the last."""
        return self.module.no_sync() if isinstance(self.module, nn.parallel.DistributedDataParallel) and not last else nullcontext()

    def step(self) -> float:
        """Clip and carry out the step; returns the norm before clipping, the same on every worker. A norm that isn't finite changes nothing."""
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> Sequence[Tensor]:
        """The whole weights, in the order of `model.parameters()`. Call it on every rank."""
        return self._weights

    @contextmanager
    def showing(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Within it, `model` holds these weights."""
        if weights is self._weights:
            yield
            return
        kept = [p.clone() for p in self._weights]
        torch._foreach_copy_(self._weights, list(weights))
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, kept)

    def moments(self) -> State:
        """AdamW's state by parameter name, for the parameters that have one. Call it on every rank."""
        names = {p: name for name, p in self.model.named_parameters()}
        return {names[p]: dict(state) for p, state in self.optimizer.state.items()}


class DeepSpeedEngine:
    """A copy of the objective under DeepSpeed; `model` gets its weights when they are to be seen."""

    def __init__(
        self,
        objective: nn.Module,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float,
        gradient_clip: float,
        accumulation: int,
        zero_stage: int,
    ):
        check("deepspeed")
        self.model, self.accumulation, self.zero_stage, self.gradient_clip = model, accumulation, zero_stage, gradient_clip
        self._objective, self._rates = objective, (learning_rate, weight_decay)
        self._config = {
            "train_micro_batch_size_per_gpu": 1,  # named because it must be; batches are ours
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": gradient_clip if zero_stage else 0.0,  # without ZeRO, DeepSpeed clips but keeps the norm to itself
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": zero_stage},
            "steps_per_print": 10**9,
        }

    def start(self, weights: dict[str, Tensor] | None, moments: State | None, first_batch: Callable[[], Batch]) -> None:
        """As TorchEngine's. A checkpoint's moments need a place: a step of rate 0 on `first_batch` makes it."""
        import deepspeed

        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/alone", rank=0, world_size=1)
        if weights is not None:
            self.model.load_state_dict(weights)
        # one deepcopy of both, so that the copied objective holds the copied model
        objective, model = copy.deepcopy((self._objective, self.model))
        for p in model.parameters():
            if p.ndim == 0:
                p.data = p.data.view(1)  # DeepSpeed cannot broadcast a number without a dimension
        optimizer = adamw(model, *self._rates)
        deepspeed.init_distributed(dist_backend=dist.get_backend())
        self.module, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=self._config, model_parameters=list(model.parameters()))
        self.workers = dist.get_world_size()
        self._parameters = list(model.parameters())
        self._names = [name for name, _ in self.model.named_parameters()]
        self._shapes = [p.shape for p in self.model.parameters()]
        if moments is not None:
            self._set_moments(moments, first_batch)

    def _set_moments(self, moments: State, first_batch: Callable[[], Batch]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self.set_rate(0.0)
        batch = first_batch()
        for _ in range(self.accumulation):
            self.backward(self.module(batch)["loss"], 1)
            self.module.step()
        self._link_moments()
        steps = max(float(state["step"]) for state in moments.values())
        for name, shape, p in zip(self._names, self._shapes, self._parameters, strict=True):
            for key in MOMENTS:
                value = (moments[name][key] if name in moments else torch.zeros(shape, device=p.device)).reshape(shape or (1,))
                if self.zero_stage == 0:
                    self._torch_optimizer.state[p][key].copy_(value)
                elif self.zero_stage == 3:  # the full setter fails where ranks do not divide a parameter evenly
                    part = p.ds_tensor.numel()
                    whole = torch.nn.functional.pad(value.flatten(), (0, part * self.workers - value.numel()))
                    safe_set_local_optimizer_state(p, whole[dist.get_rank() * part :][:part], key)
                else:
                    safe_set_full_optimizer_state(p, value, key)
        for state in self._torch_optimizer.state.values():
            state["step"].fill_(steps)

    def _link_moments(self) -> None:
        """Tell each parameter where its moments lie. DeepSpeed does so after the first step of the first group of parameters, when the others have none yet."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        outer = self.module.optimizer
        if self.zero_stage in (1, 2):
            for parameters, flat in zip(outer.bit16_groups, outer.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, outer.optimizer.state)

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        outer = self.module.optimizer
        return outer if self.zero_stage == 0 else outer.optimizer

    def set_rate(self, rate: float) -> None:
        for group in self.module.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: Tensor, targets: int) -> None:
        self.module.backward(loss * (self.workers * self.accumulation / max(1, targets)))  # DeepSpeed divides by the parts of a step

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        yield
        if not last:
            self.module.step()  # counts the part

    def step(self) -> float:
        """Carry out the step; returns the gradient's norm before clipping, the same on every worker."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self.gradient_clip) if self.zero_stage == 0 else None
        self.module.step()
        return float(self.module.get_global_grad_norm() if norm is None else norm)

    @torch.no_grad()
    def weights(self) -> Sequence[Tensor]:
        """The whole weights, gathered from all ranks. Call it on every rank."""
        import deepspeed

        if self.zero_stage < 3:
            return [p.detach().view(shape) for p, shape in zip(self._parameters, self._shapes, strict=True)]
        whole = []
        for p, shape in zip(self._parameters, self._shapes, strict=True):
            with deepspeed.zero.GatheredParameters([p]):
                whole.append(p.detach().clone().view(shape))
        return whole

    @contextmanager
    def showing(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Within it, and until the next time, `model` holds these weights."""
        torch._foreach_copy_([p.detach() for p in self.model.parameters()], list(weights))
        yield

    def moments(self) -> State:
        """AdamW's state by parameter name, gathered from all ranks. Call it on every rank."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner = self._torch_optimizer.state
        if not inner:
            return {}
        step = next(iter(inner.values()))["step"].clone()
        if self.zero_stage == 0:
            return {
                name: {"step": step, **{key: inner[p][key] for key in MOMENTS}} for name, p in zip(self._names, self._parameters, strict=True) if p in inner
            }
        self._link_moments()
        gathered = {}
        for name, p in zip(self._names, self._parameters, strict=True):
            gathered[name] = {"step": step, **{key: safe_get_full_optimizer_state(p, key).clone() for key in MOMENTS}}
        return gathered


Engine = TorchEngine | DeepSpeedEngine
