"""The language model over text and semantic IDs: hidden states, logits of one group of tokens, the loss of a batch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from models.common.devices import TINY
from models.generation.backbones import merged
from models.generation.packing import IGNORED, Batch
from models.generation.vocabulary import Vocabulary
from storage.artifacts import load_model, rebuilding, save_model

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

KIND = "generator"


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

    def read(self, prompts: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Hidden states [B, T, D] of prompts int64 [B, T], padded on the right; see `hidden`."""
        count, width = prompts.shape
        places = torch.arange(width, device=prompts.device)
        causal = (places <= places[:, None]).expand(count, 1, width, width)
        return self.hidden(prompts, places.expand(count, width), causal, cache)

    def level_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Logits of one level's codes, float32 [..., sizes[level]], of hidden states [..., D]."""
        start = self.vocabulary.start(level)
        return functional.linear(hidden, self._output()[start : start + self.vocabulary.sizes[level]]).float()

    def text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the text tokens, float32 [..., sid_start], of hidden states [..., D]."""
        return functional.linear(hidden, self._output()[: self.vocabulary.sid_start]).float()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the classes of decoder layers."""
        return tuple(self.backbone._no_split_modules or ())  # transformers' word for them

    def weight(self, batch: Batch) -> torch.Tensor:
        """Responses of a batch."""
        return batch.weights.sum()

    def plain(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the backbone's tensors, adapters merged, of a whole state dict of this module."""
        return merged({name.removeprefix("backbone."): value for name, value in state.items()}, self.backbone)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the targets, each within its group: the mean over responses, float32 []; 0 without any."""
        hidden = self.hidden(batch.tokens, batch.positions, batch.mask())
        wanted = batch.targets != IGNORED
        hidden, targets, weights = hidden[wanted], batch.targets[wanted], batch.weights[wanted]
        sizes = [self.vocabulary.sid_start, *self.vocabulary.sizes]
        starts = torch.tensor([0, *sizes], device=targets.device).cumsum(0)
        group = torch.bucketize(targets, starts, right=True) - 1
        if not len(targets):  # every worker has a gradient of every weight
            return (hidden.sum() + self._output().sum()).float() * 0.0
        loss = hidden.new_zeros((), dtype=torch.float32)
        # one split for all groups: its gradient is written once, that of a slice as a whole matrix for each
        for number, rows in enumerate(self._output().split(sizes)):
            at = (group == number).nonzero()[:, 0]
            if len(at):
                logits = functional.linear(hidden[at], rows).float()
                each = functional.cross_entropy(logits, targets[at] - starts[number], reduction="none")
                loss = loss + (each * weights[at]).sum()  # a product of vectors would be one in half precision
        return loss / weights.sum().clamp_min(TINY)

    def _output(self) -> torch.Tensor:
        """Returns the output matrix [tokens, D]."""
        return self.backbone.get_output_embeddings().weight


def save_generator(uri: str, model: LanguageModel, state: dict[str, torch.Tensor]) -> None:
    """Writes a generator's artifact: the vocabulary, the backbone's configuration and its weights.

    Adapters are kept merged: what is written is one plain model, which needs neither peft nor the model that it was
    tuned from, and decodes at no extra cost.

    Args:
        uri: a folder.
        model: that was trained.
        state: the whole state dict of the model, as `models.common.data_parallel.gather_state` returns it.
    """
    model.vocabulary.save(uri)
    config = json.loads(model.backbone.config.to_json_string(use_diff=False))
    save_model(uri, KIND, {"backbone": config}, model.plain(state))


def load_generator(uri: str) -> LanguageModel:
    """A generator on the CPU, in evaluation mode.

    Raises:
        ArtifactError: there is none at `uri`, or it is damaged.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = Vocabulary.load(uri)
    config, tensors = load_model(uri, KIND)
    with rebuilding(uri, KIND):
        kind = AutoConfig.for_model(**config["backbone"])
        with init_empty_weights(include_buffers=False):
            backbone = AutoModelForCausalLM.from_config(kind, attn_implementation="sdpa")
        missing, unknown = backbone.load_state_dict(tensors, strict=False, assign=True)
        backbone.tie_weights()
        if unknown or any(value.is_meta for value in backbone.state_dict().values()):
            raise ValueError(f"weights {[*missing, *unknown]}")
    return LanguageModel(backbone, vocabulary).eval()
