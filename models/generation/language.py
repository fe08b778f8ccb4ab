"""The language model over text and semantic IDs: hidden states, logits of one group of tokens, the loss of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional

from models.generation.backbones import merged
from models.generation.packing import IGNORED, Batch
from models.generation.vocabulary import Vocabulary
from models.workers import total, world
from storage.errors import UserError
from storage.weights import load_model, save_model

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Strategy = Literal["ddp", "fsdp"]
KIND = "generator"
TINY = torch.finfo(torch.float32).tiny


class LanguageModel(nn.Module):
    """A decoder and what its tokens mean.

    A token's probability is normalised over its group alone: the codes of its level, or the text. So an item's score,
    the sum of its codes' log-probabilities, spends nothing on tokens that cannot stand there, and is the same whether
    it is trained, decoded or tested.
    """

    def __init__(self, backbone: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.backbone, self.vocabulary = backbone, vocabulary

    def hidden(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Cache | None = None
    ) -> torch.Tensor:
        """Hidden states after the last layer's norm, [B, T, D].

        Args:
            tokens: int64 [B, T].
            positions: int64 [B, T].
            mask: bool [B, 1, T, S], what each token may attend to: the S - T tokens of the cache, then these; each
                something.
            cache: keys and values of earlier tokens; these tokens' are added to it.
        """
        found = self.backbone.base_model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return found.last_hidden_state

    def level_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Logits of one level's codes, float32 [..., sizes[level]], of hidden states [..., D]."""
        start = self.vocabulary.start(level)
        return functional.linear(hidden, self._output()[start : start + self.vocabulary.sizes[level]]).float()

    def text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the text tokens, float32 [..., sid_start], of hidden states [..., D]."""
        return functional.linear(hidden, self._output()[: self.vocabulary.sid_start]).float()

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the targets, each within its group: the mean over responses, float32 []; 0 without any."""
        hidden = self.hidden(batch.tokens, batch.positions, batch.mask())
        wanted = batch.targets != IGNORED
        hidden, targets, weights = hidden[wanted], batch.targets[wanted], batch.weights[wanted]
        sizes = [self.vocabulary.sid_start, *self.vocabulary.sizes]
        starts = torch.tensor([0, *sizes], device=targets.device).cumsum(0)
        group = torch.bucketize(targets, starts, right=True) - 1
        loss = hidden.sum() * 0.0  # no logits of a group without targets, and every worker has a gradient
        # one split for all groups: its gradient is written once, that of a slice as a whole matrix for each
        for number, rows in enumerate(self._output().split(sizes)):
            at = (group == number).nonzero()[:, 0]
            if len(at):
                logits = functional.linear(hidden[at], rows).float()
                loss = (
                    loss
                    + functional.cross_entropy(logits, targets[at] - starts[number], reduction="none") @ weights[at]
                )
        return loss.float() / weights.sum().clamp_min(TINY)

    def _output(self) -> torch.Tensor:
        """The output matrix [tokens, D]."""
        return self.backbone.get_output_embeddings().weight


class TrainingTask(nn.Module):
    """A model's loss in the form that DDP and FSDP wrap: a worker's share of the step's.

    The mean of the shares over the workers is the loss of the step, the mean over all its responses.
    """

    def __init__(self, model: LanguageModel, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, batch: Batch) -> torch.Tensor:
        """The share, float32 []; all workers have to call it together."""
        with torch.autocast(batch.tokens.device.type, self.precision, enabled=self.precision != torch.float32):
            loss = self.model.loss(batch)
        mine = batch.weights.sum()
        whole = mine.clone()
        total([whole])
        return loss * (mine * world()[1] / whole.clamp_min(TINY))


def parallelise(
    model: LanguageModel, strategy: Strategy, device: torch.device, precision: torch.dtype = torch.float32
) -> nn.Module:
    """A module whose forward is a worker's share of the loss of a batch, see `TrainingTask`.

    `ddp` keeps a whole model on every worker. `fsdp` shares out weights, gradients and the optimizer's state, layer by
    layer: make the optimizer of the module that is returned. Without a process group there is one worker.

    Args:
        precision: of the activations, under autocast; the weights keep theirs.
    """
    task = TrainingTask(model.to(device), precision)
    if not dist.is_initialized():
        return task
    if strategy == "ddp":
        return nn.parallel.DistributedDataParallel(task, device_ids=[device] if device.type == "cuda" else None)
    for layer in model.backbone.modules():
        if type(layer).__name__ in (model.backbone._no_split_modules or ()):  # transformers' word for decoder layers
            fully_shard(layer)
    return fully_shard(task)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[LanguageModel]:
    """The model of `parallelise`, in evaluation mode and without gradients.

    Under FSDP its layers are gathered as they are called: after a first training step, all workers have to call them
    equally often.
    """
    sharded = isinstance(module, FSDPModule)
    if sharded:
        module.unshard()  # embeddings and the output matrix, which are the root's
    module.eval()
    with torch.no_grad():
        yield _task(module).model
    module.train()
    if sharded:
        module.reshard()


def gather_state(module: nn.Module) -> dict[str, torch.Tensor] | None:
    """The plain state dict of the backbone, adapters merged, on the CPU of the first worker; None elsewhere.

    Every worker has to call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(module, options=options)
    if world()[0]:
        return None
    prefix = "model.backbone."
    backbone = _task(module).model.backbone
    return merged({name.removeprefix(prefix): value for name, value in state.items()}, backbone)


def _task(module: nn.Module) -> TrainingTask:
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def save_generator(uri: str, model: LanguageModel, state: dict[str, torch.Tensor]) -> None:
    """Write a generator's artifact: the vocabulary, the backbone's configuration and its weights.

    Adapters are kept merged: what is written is one plain model, which needs neither peft nor the model that it was
    tuned from, and decodes at no extra cost.

    Args:
        uri: a folder.
        model: that was trained.
        state: of its backbone, as `gather_state` returns it.
    """
    model.vocabulary.save(uri)
    config = json.loads(model.backbone.config.to_json_string(use_diff=False))
    save_model(uri, KIND, {"backbone": config}, state)


def load_generator(uri: str) -> LanguageModel:
    """A generator on the CPU, in evaluation mode.

    Raises:
        UserError: there is none at `uri`, or it is damaged.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = Vocabulary.load(uri)
    config, tensors = load_model(uri, KIND)
    try:
        kind = AutoConfig.for_model(**config["backbone"])
        with init_empty_weights(include_buffers=False):
            backbone = AutoModelForCausalLM.from_config(kind, attn_implementation="sdpa")
        missing, unknown = backbone.load_state_dict(tensors, strict=False, assign=True)
        backbone.tie_weights()
        if unknown or any(value.is_meta for value in backbone.state_dict().values()):
            raise ValueError(f"weights {[*missing, *unknown]}")
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise UserError(
            f"The generator at {uri} is damaged or of another version: run the stage generate again."
        ) from error
    return LanguageModel(backbone, vocabulary).eval()
