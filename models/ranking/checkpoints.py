"""Training state on disk: written by any number of workers, read by any number, and compared before it is read.

A checkpoint is a folder of torch.distributed.checkpoint (one `__RANK_0.distcp` per worker and `.metadata`) and, written
last, `index.json`: the position, and a digest of every file, since reading tensors does not notice a changed byte. The
metadata are unpickled: load only what a run of one's own wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from xxhash import xxh3_128

from storage.errors import UserError

INDEX, METADATA = "index.json", ".metadata"
MODEL, OPTIMIZER = "model.", "optimizer."
ADVICE = "train from the start, in a workflow by running it with --from and the stage"


def save(
    folder: str, *, model: DistributedModelParallel, optimizer: CombinedOptimizer, position: dict[str, Any]
) -> None:
    """Writes a sharded module, its optimizer's state and a position; every worker has to call it.

    Workers may share the folder or have one each, whose files are put together before `load`: each worker writes its
    own part, and the first one also the metadata and the index.

    Args:
        folder: on a local disk.
        position: where training stands, in what JSON knows.

    Raises:
        UserError: some worker cannot write, on all workers.
    """
    rank, workers = dist.get_rank(), dist.get_world_size()
    try:
        writer = checkpoint.FileSystemWriter(folder)
        checkpoint.save(_tensors(model, optimizer), storage_writer=writer)
    except CheckpointException as error:
        worker, (cause, _) = next(iter(error.failures.items()))
        raise UserError(f"Worker {worker} cannot write the checkpoint {folder} ({cause}): make room for it.") from error
    written = [*Path(folder).glob(f"__{rank}_*.distcp"), *([Path(folder, METADATA)] if rank == 0 else [])]
    digests: list[dict[str, str]] = [{}] * workers
    dist.all_gather_object(digests, {file.name: _digest(file) for file in written})
    if rank == 0:
        files = {name: digest for part in digests for name, digest in part.items()}
        Path(folder, INDEX).write_text(json.dumps({"position": position, "files": files}))


def load(folder: str, *, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> dict[str, Any]:
    """Takes over what `save` wrote; every worker has to call it, and finds all files of the checkpoint in its folder.

    Tables may be sharded in another way and over another number of workers than they were; column-wise shards have
    optimizer states of their own, and keep their number.

    Returns:
        The position.

    Raises:
        UserError: the checkpoint is damaged, incomplete or of another model, on all workers; the model keeps its
            weights.
    """
    complaint: str | None = None
    try:
        index = json.loads(Path(folder, INDEX).read_text())
        position, files = index["position"], index["files"]
        damaged = [name for name, digest in files.items() if _digest(Path(folder, name)) != digest]
        if damaged:
            complaint = f"is damaged: {damaged[0]} is not what was written"
        else:
            metadata = checkpoint.FileSystemReader(folder).read_metadata()
            complaint = _differences(metadata, _tensors(model, optimizer), MODEL)
    except FileNotFoundError as error:
        complaint = f"is incomplete: {Path(error.filename).name} is missing"
    except (ValueError, LookupError, TypeError, OSError) as error:
        complaint = f"cannot be read ({type(error).__name__}: {error})"
    _agree(folder, complaint)
    _start(optimizer, metadata)
    tensors = _tensors(model, optimizer)
    _agree(folder, _differences(metadata, tensors, OPTIMIZER))
    checkpoint.load(tensors, storage_reader=checkpoint.FileSystemReader(folder))
    return position


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, xxh3_128).hexdigest()


def _tensors(model: DistributedModelParallel, optimizer: CombinedOptimizer) -> dict[str, Any]:
    """Returns all tensors by name; they are the module's and the optimizer's own, and loading writes into them."""
    tensors = {MODEL + name: value for name, value in model.state_dict().items()}
    for parameter, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{parameter}.{name}": value for name, value in state.items()}
    return tensors


def _differences(metadata: Metadata, tensors: dict[str, Any], prefix: str) -> str | None:
    """Returns what parts a checkpoint's tensors from the model's or the optimizer's, in words."""
    saved: dict[str, Any] = {
        name: entry for name, entry in metadata.state_dict_metadata.items() if name.startswith(prefix)
    }
    wanted = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    found = [f"it lacks {name.removeprefix(prefix)}" for name in wanted.keys() - saved.keys()]
    if prefix == MODEL:  # a worker has the optimizer states of its own tables only
        found += [f"the model has no {name.removeprefix(prefix)}" for name in saved.keys() - wanted.keys()]
    for name in wanted.keys() & saved.keys():
        before, now = tuple(saved[name].size), tuple(wanted[name].size())
        if before != now:
            found.append(_resized(name.removeprefix(prefix), before, now))
    if not found:
        return None
    found.sort(key=lambda text: (not text.startswith("table "), text))
    kind = "another model" if prefix == MODEL else "another optimizer or another number of column-wise shards"
    more = f" and {len(found) - 3} more differences" if len(found) > 3 else ""
    return f"is of {kind}: {', '.join(found[:3])}{more}"


def _resized(name: str, before: tuple[int, ...], now: tuple[int, ...]) -> str:
    table = re.search(r"embedding_bags\.(\w+)\.weight$", name)
    if table is None:
        return f"{name} has the shape {list(before)} in the checkpoint and {list(now)} in the model"
    axis, unit = (0, "rows") if before[0] != now[0] else (1, "columns")
    return f"table {table[1]} has {before[axis]:,} {unit} in the checkpoint and {now[axis]:,} in the model"


def _start(optimizer: CombinedOptimizer, metadata: Metadata) -> None:
    """Makes the dense optimizer's state, which torch makes in the first step: zeros of the saved shapes."""
    saved: dict[str, Any] = metadata.state_dict_metadata
    for part in (part for _, part in optimizer.optimizers if isinstance(part, KeyedOptimizerWrapper)):
        for name, entry in saved.items():
            parameter, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
            if name.startswith(OPTIMIZER) and parameter in part.params:
                owner = part.params[parameter]
                blank = torch.zeros(entry.size, dtype=entry.properties.dtype, device=owner.device)
                part.state[owner].setdefault(key, blank)


def _agree(folder: str, complaint: str | None) -> None:
    """Raises on all workers what any of them has to complain of."""
    complaints: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(complaints, complaint)
    for said in filter(None, complaints):
        raise UserError(f"The checkpoint {folder} {said}: {ADVICE}.")
