"""Trains a model on one worker or on many: DDP keeps it whole on each, FSDP shards it layer by layer.

Without a process group there is one worker, and every function works for that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.common.collectives import all_reduce_sum, rank_and_size
from models.common.devices import TINY

Strategy = Literal["ddp", "fsdp"]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Learner(Protocol):
    """A module with a loss.

    Attributes:
        layers: names of the classes that FSDP shares out one by one.
    """

    layers: Sequence[str]

    def loss(self, batch: Any) -> torch.Tensor:
        """Returns the mean loss of a batch, float32 []; 0, with gradients, for one that weighs nothing."""
        ...

    def weight(self, batch: Any) -> torch.Tensor:
        """Returns what the mean is over."""
        ...


class LearnerLoss(nn.Module):
    """A learner's loss in the form that DDP and FSDP wrap."""

    def __init__(self, learner: Any, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.learner, self.precision = learner, precision

    def forward(self, batch: Any, whole: torch.Tensor) -> torch.Tensor:
        """Returns the batch's part of a step's loss, float32 []; `whole`: what a worker's batches weigh on average.

        The sum over a worker's batches, averaged over the workers, is the mean over all that the step weighs.
        """
        device, half = whole.device.type, self.precision != torch.float32
        # on a CPU the backward of flash attention takes three times as long in half precision as plain products
        plain = sdpa_kernel(SDPBackend.MATH) if half and device == "cpu" else nullcontext()
        with plain, torch.autocast(device, self.precision, enabled=half):
            loss = self.learner.loss(batch)
        return loss.float() * (self.learner.weight(batch) / whole)


def parallelise(
    learner: Any, strategy: Strategy, device: torch.device, precision: torch.dtype = torch.float32
) -> nn.Module:
    """Wraps a learner for training; make the optimizer of the module that is returned.

    Args:
        learner: see `Learner`.
        strategy: `ddp`, or `fsdp`, which shares out weights, gradients and the optimizer's state.
        precision: of the activations, under autocast; the weights keep theirs.
    """
    task = LearnerLoss(learner.to(device), precision)
    if not dist.is_initialized():
        return task
    if strategy == "ddp":
        devices = [device] if device.type == "cuda" else None
        # buffers are tables that nothing changes, and large ones
        return nn.parallel.DistributedDataParallel(task, device_ids=devices, broadcast_buffers=False)
    for layer in list(task.modules()):
        if type(layer).__name__ in learner.layers:
            fully_shard(layer)
    root: Any = fully_shard(task)
    root._get_fsdp_state()._lazy_init()  # where a layer is the first to run, as in evaluation, it takes itself for it
    return root


def backward(module: Any, batches: Sequence[Any]) -> float:
    """Adds the gradients of one step over this worker's batches; return the mean loss of the step over all workers.

    Workers may have different numbers of batches: one that has fewer goes through its last one again, without weight.
    """
    task = plain_task(module)
    device = next(task.parameters()).device
    weights = [task.learner.weight(batch).float() for batch in batches]
    count, workers = torch.tensor([len(batches)], device=device), rank_and_size()[1]
    whole = torch.stack(weights).sum().to(device)
    if workers > 1:
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
    all_reduce_sum([whole])
    whole, rounds, loss = (whole / workers).clamp_min(TINY), int(count), torch.zeros((), device=device)
    for turn in range(rounds):
        batch = batches[min(turn, len(batches) - 1)]
        last = turn == rounds - 1  # gradients of the batches before it stay on their rank
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        whole_on_each = isinstance(module, nn.parallel.DistributedDataParallel)
        with module.no_sync() if whole_on_each and not last else nullcontext():
            part = module(batch, whole) * float(turn < len(batches))
            part.backward()
        loss += part.detach()
    all_reduce_sum([loss])
    return float(loss) / workers


@contextmanager
def evaluating(module: nn.Module) -> Iterator[Any]:
    """Yields the learner, in evaluation mode and without gradients.

    Under FSDP its layers are gathered as they are called: all workers have to call them equally often.
    """
    if isinstance(module, FSDPModule):
        module.unshard()  # what is the root's own
    module.eval()
    with torch.no_grad():
        yield plain_task(module).learner
    module.train()
    if isinstance(module, FSDPModule):
        module.reshard()


def gather_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the learner's plain state dict, whole and on the CPU, on rank 0; empty elsewhere. All ranks call it."""
    return {name.removeprefix("learner."): value for name, value in _whole(module).items()}


def load_state(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Loads what `gather_state` returned; rank 0 has it all, the others nothing. All ranks call it."""
    state: dict[str, Any] = {f"learner.{name}": value for name, value in tensors.items()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized())
    set_model_state_dict(module, state, options=options)


def snapshot(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns all that a fit resumes from, on rank 0; empty elsewhere. All ranks call it."""
    state = {f"model.{name}": value for name, value in _whole(module).items()}
    if optimizer.state:  # torch would make one before the first step, and count that as a step
        found: Any = get_optimizer_state_dict(module, optimizer, options=WHOLE).get("state", {})
        state |= {f"optimizer.{name}.{key}": value for name in found for key, value in found[name].items()}
    return {name: value.clone() for name, value in state.items()}  # tied weights share memory, which no file can say


def restore(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Loads what `snapshot` returned; every rank has it all."""
    model, state = dict[str, Any](), dict[str, Any]()
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            model[rest] = value
        else:
            parameter, _, key = rest.rpartition(".")
            state.setdefault(parameter, {})[key] = value
    set_model_state_dict(module, model, options=WHOLE)
    if state:
        # of every worker, unlike the whole ones
        groups: Any = get_optimizer_state_dict(module, optimizer)["param_groups"]
        set_optimizer_state_dict(module, optimizer, {"state": state, "param_groups": groups}, options=WHOLE)


def _whole(module: nn.Module) -> dict[str, torch.Tensor]:
    found: Any = get_model_state_dict(module, options=WHOLE)
    return found


def plain_task(module: nn.Module) -> Any:
    """Returns the task within what `parallelise` returned."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
