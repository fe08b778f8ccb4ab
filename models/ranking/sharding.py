"""A module spread over the workers of a process group, and gathered again."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.remote_device import _remote_device
from torch.optim import Adagrad
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fp_embeddingbag import FeatureProcessedEmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.sharding_plan import apply_to_all, construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from models.common.seeds import generator
from models.ranking.config import EmbeddingOptimizer, Sharding
from storage.errors import UserError

SHARDERS: list[ModuleSharder[Any]] = [EmbeddingBagCollectionSharder(), FeatureProcessedEmbeddingBagCollectionSharder()]
DRAWN_ROWS = 1 << 16  # of a table at a time
PROCESSORS = "_feature_processors."  # in the names of parameters that weigh the members of bags


def shard(
    module: nn.Module,
    *,
    device: torch.device,
    embedding_lr: float,
    dense_lr: float,
    weight_decay: float,
    sharding: Sharding = "table_wise",
    embedding_optimizer: EmbeddingOptimizer = "rowwise_adagrad",
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Shards a module's embedding bags and replicate the rest; every worker has to call it.

    Embeddings update inside the backward pass, the rest by AdamW, which decays matrices only: no biases, norms or
    weights of bags. Give each worker's loss as `losses.sum() / (rows of the step / workers)`: then
    both move along the gradient of the step's mean, however its rows are shared out. Data-parallel tables are left out
    of the plan: they would leave the fused optimizer.

    Args:
        sharding: whole tables, or columns or rows of each table, per worker. Row-wise Adagrad keeps one rate per row
            of a shard, so that columns of a row get rates of their own where they are parted. Row-wise sharding over
            gloo takes equally many rows of a step from each worker.
        embedding_optimizer: row-wise Adagrad keeps a number per row, Adagrad one per element; on CPUs it is the faster.

    Raises:
        UserError: no plan on some worker; all of them raise, and none waits.
    """
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            optimizer = RowWiseAdagrad if embedding_optimizer == "rowwise_adagrad" else Adagrad
            apply_optimizer_in_backward(optimizer, part.parameters(), {"lr": embedding_lr, "eps": 1e-6})
    model = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=_common_plan(module, device, sharding),
        sharders=SHARDERS,
    )
    parameters = dict(in_backward_optimizer_filter(model.named_parameters()))
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, value in parameters.items():
        matrix = value.dim() > 1 and name.endswith("weight") and PROCESSORS not in name
        (decayed if matrix else others).append(value)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    dense = KeyedOptimizerWrapper(parameters, lambda _: torch.optim.AdamW(groups, lr=dense_lr, fused=True))
    return model, CombinedOptimizer([model.fused_optimizer, dense])


def _common_plan(module: nn.Module, device: torch.device, sharding: Sharding) -> ShardingPlan:
    """Returns the first worker's plan; where any worker cannot make one, all raise, and none waits for the others."""
    plan = failure = None
    try:
        plan = _plan(module, device, sharding, dist.get_world_size())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other workers have to hear of it
        # a planner explains itself on a page
        failure = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (plan, failure, f"rank:{dist.get_rank()}/{device}"))
    plans, failures, places = zip(*outcomes, strict=True)
    for worker, said in enumerate(failures):
        if said is not None:
            raise UserError(f"Worker {worker} of {len(failures)} has no plan for the embedding tables: {said}")
    # plans count devices from 0; sharded tensors want each worker's own
    for tables in plans[0].plan.values():
        for table in tables.values():
            for part in table.sharding_spec.shards:
                part.placement = _remote_device(places[part.placement.rank()])
    return plans[0]


def _plan(module: nn.Module, device: torch.device, sharding: Sharding, workers: int) -> ShardingPlan:
    if sharding == "row_wise":  # which the planner refuses on CPUs
        where = {"local_size": workers, "world_size": workers, "device_type": device.type}
        plans = {
            path: construct_module_sharding_plan(part, apply_to_all(part, row_wise()), **where)
            for path, part in module.named_modules()
            if isinstance(part, EmbeddingBagCollection | FeatureProcessedEmbeddingBagCollection)
            and not path.endswith("_embedding_bag_collection")  # is planned with the feature-processed one around it
        }
        return ShardingPlan(plans)
    constraints, least = {}, 4 * workers  # kernels take columns by four
    bags = (part for part in module.modules() if isinstance(part, EmbeddingBagCollection))
    for config in (config for part in bags for config in part.embedding_bag_configs()):
        if sharding == "column_wise" and config.embedding_dim % least:
            raise UserError(
                f"{workers} workers cannot share the {config.embedding_dim} columns of the table {config.name}: "
                f"set embedding_dim to a multiple of {least}, or sharding to table_wise."
            )
        constraints[config.name] = ParameterConstraints(
            sharding_types=[sharding],
            min_partition=config.embedding_dim // workers if sharding == "column_wise" else None,
        )
    topology = Topology(world_size=workers, compute_device=device.type)
    return EmbeddingShardingPlanner(topology=topology, constraints=constraints).plan(module, SHARDERS)


@torch.no_grad()
def draw_tables(model: DistributedModelParallel, *, std: float, seed: int) -> None:
    """Draws the embeddings of all tables from a normal distribution, the same for any sharding and number of workers.

    Every block of rows is drawn by itself, so that a worker draws only what its shards hold of.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, ShardedTensor):
            continue
        for part in value.local_shards():
            (first, left), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
            for block in range(first // DRAWN_ROWS, -(-(first + rows) // DRAWN_ROWS)):
                drawn = torch.empty(DRAWN_ROWS, value.size(1))
                drawn.normal_(std=std, generator=generator(seed, block, *name.encode()))
                start, end = max(first, block * DRAWN_ROWS), min(first + rows, (block + 1) * DRAWN_ROWS)
                inside = drawn[start - block * DRAWN_ROWS : end - block * DRAWN_ROWS, left : left + columns]
                part.tensor[start - first : end - first].copy_(inside)


@torch.no_grad()
def fill(model: DistributedModelParallel, state: dict[str, torch.Tensor], *, prefix: str) -> None:
    """Sets the part under `prefix` to a plain state dict, of which every worker takes its shards."""
    for name, value in model.state_dict().items():
        if not name.startswith(prefix):
            continue
        whole = state[name.removeprefix(prefix)]
        if not isinstance(value, ShardedTensor):
            value.copy_(whole)
            continue
        for part in value.local_shards():
            (first, left), (rows, columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
            part.tensor.copy_(whole[first : first + rows, left : left + columns])


@torch.no_grad()
def gather_state(model: DistributedModelParallel, *, prefix: str) -> dict[str, torch.Tensor] | None:
    """The plain state dict of the part under `prefix`, whole tables on the CPU, on the first worker; None elsewhere.

    Every worker has to call it.
    """
    first = dist.get_rank() == 0
    state: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        if name.startswith(prefix):
            whole = _whole(value, model.device) if isinstance(value, ShardedTensor) else value.detach().cpu().clone()
            state[name.removeprefix(prefix)] = whole
    return state if first else None


def _whole(tensor: ShardedTensor, device: torch.device) -> torch.Tensor | None:
    """Returns all shards together, on the CPU of the first worker; one shard at a time is under way."""
    rank = dist.get_rank()
    whole = torch.empty(tensor.size(), dtype=tensor.dtype) if rank == 0 else None
    mine = {tuple(part.metadata.shard_offsets): part.tensor.contiguous() for part in tensor.local_shards()}
    for shard in tensor.metadata().shards_metadata:
        offsets, sizes = tuple(shard.shard_offsets), tuple(shard.shard_sizes)
        if whole is None:
            if offsets in mine:
                dist.send(mine[offsets], dst=0)
            continue
        if offsets not in mine:
            mine[offsets] = torch.empty(sizes, dtype=tensor.dtype, device=device)
            dist.recv(mine[offsets], src=shard.placement.rank())  # type: ignore[union-attr]
        whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = mine.pop(offsets).cpu()
    return whole
