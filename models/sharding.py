"""A module spread over the workers of a process group, and gathered again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingEnv, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad


def shard(
    module: nn.Module, *, device: torch.device, embedding_lr: float, dense_lr: float, weight_decay: float
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Shard a module's embedding bags by table and replicate the rest, over the default process group.

    Embeddings update inside the backward pass (row-wise Adagrad), the rest by AdamW. Data-parallel tables are left out
    of the plan: they would leave the fused optimizer.
    """
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            apply_optimizer_in_backward(RowWiseAdagrad, part.parameters(), {"lr": embedding_lr, "eps": 1e-6})
    model = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=_plan(module, device),
        sharders=[EmbeddingBagCollectionSharder()],
    )
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())),
        lambda parameters: torch.optim.AdamW(parameters, lr=dense_lr, weight_decay=weight_decay),
    )
    return model, CombinedOptimizer([model.fused_optimizer, dense])


def _plan(module: nn.Module, device: torch.device) -> ShardingPlan:
    """One plan for all ranks; where rank 0 cannot make one, every rank raises, and none waits for a plan."""
    tables = [
        c.name
        for part in module.modules()
        if isinstance(part, EmbeddingBagCollection)
        for c in part.embedding_bag_configs()
    ]
    by_table = ParameterConstraints(sharding_types=[ShardingType.TABLE_WISE.value])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=dist.get_world_size(), compute_device=device.type),
        constraints=dict.fromkeys(tables, by_table),
    )
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = planner.plan(module, [EmbeddingBagCollectionSharder()])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks have to hear of it
            answer[1] = f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise RuntimeError(f"no sharding plan: {answer[1]}")
    return answer[0]


def gather_state(model: DistributedModelParallel, *, prefix: str) -> dict[str, torch.Tensor] | None:
    """The plain state dict of the part under `prefix`, whole tables on the CPU, on rank 0; None elsewhere.

    Every rank has to call it.
    """
    first = dist.get_rank() == 0
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            whole = torch.empty(value.size(), device=model.device) if first else None
            value.gather(dst=0, out=whole)
        else:
            whole = value
        if whole is not None and first:
            state[name.removeprefix(prefix)] = whole.detach().cpu().clone()
    return state if first else None


@torch.no_grad()
def mean_loss(
    model: DistributedModelParallel,
    rows: int,
    batch: Callable[[torch.Tensor], Any],
    *,
    device: torch.device,
    batch_size: int = 2048,
) -> float:
    """Mean over all rows of the model's per-row loss, every row counted once; every rank has to call it.

    Ranks take turns by row and make equally many steps: where one has run out it computes row 0 again, with weight 0.

    Args:
        batch: the input for row positions int64 [B]; `model(input)` returns (loss, per-row loss [B]).
    """
    rank, workers = dist.get_rank(), dist.get_world_size()
    mine = torch.arange(rank, -(-rows // workers) * workers, workers)
    total = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    for at in mine.split(batch_size):
        _, losses = model(batch(torch.where(at < rows, at, 0)).to(device))
        total += losses.double()[(at < rows).to(device)].sum()
    dist.all_reduce(total)
    return float(total) / rows
