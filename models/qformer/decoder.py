"""The language model behind the Q-Former: it reads the queries' outputs as a prefix and writes the caption."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.chat.huggingface import read_config, read_model, reading
from models.chat.smollm2 import smollm2_path
from models.common.llama import Tiny, tiny_llama
from models.common.threads import one_thread
from models.qformer import tokens
from models.qformer.settings import Architecture
from storage.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100


class Decoder(nn.Module):
    """A causal language model of transformers and the linear layer that the queries enter it by.

    The tiny one is trained; any other stays as it is, and keeps its own tokens.

    Attributes:
        frozen: whether the model stays as it is.
    """

    def __init__(self, config: Architecture, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.frozen = not isinstance(config.decoder, Tiny)
        self._tokenizer: Any = tokenizer
        self._length = config.text_tokens
        if isinstance(config.decoder, Tiny):
            self.model = tiny_llama(config.decoder, config.vocabulary, pad=tokens.PAD, bos=tokens.DEC, eos=tokens.EOS)
        else:
            name = config.decoder.model if config.decoder.name == "pretrained" else smollm2_path()
            self.model, self._tokenizer = _pretrained(name)
        self.enter = nn.Linear(config.dim, self.model.config.get_text_config().hidden_size)

    def train(self, mode: bool = True) -> Decoder:
        """Sets training mode, but not of a model that stays as it is."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def encode(self, texts: list[str]) -> Tensor:
        """Returns the tokens of texts, int64 [N, T], that end in the end's token; IGNORED beyond."""
        if not self.frozen:
            found = tokens.encode(self._tokenizer, texts, self._length)
            return found.masked_fill(found == tokens.PAD, IGNORED)
        found = torch.full((len(texts), self._length), IGNORED)
        for row, text in zip(found, texts, strict=True):
            ids = self._tokenizer(text, add_special_tokens=False).input_ids[: self._length - 1]
            ids = [*ids, self._tokenizer.eos_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return found

    def loss(self, queries: Tensor, text: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss of the texts' tokens after the queries' outputs, float32 [].

        Args:
            queries: [N, queries, dim].
            text: int64 [N, T], as `encode` gives them.
            smoothing: of the labels.
        """
        text = text[:, : int((text != IGNORED).any(0).sum())]
        prefix, rows = self._prefix(queries), self.model.get_input_embeddings()
        read = rows(text[:, :-1].clamp_min(0))
        inputs = torch.cat([prefix, read], dim=1)
        logits = self.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=text.shape[1]).logits
        return nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), text.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )

    @torch.no_grad()
    def write(self, queries: Tensor, *, beams: int = 1) -> list[str]:
        """Returns a text for the queries' outputs of each picture, [N, queries, dim], greedily or by beam search."""
        prefix = self._prefix(queries)
        eos = self.model.generation_config.eos_token_id
        with nullcontext() if self.frozen else one_thread():  # one token of a small model is little work
            written = self.model.generate(
                inputs_embeds=prefix,
                attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64, device=prefix.device),
                max_new_tokens=self._length,
                num_beams=beams,
                do_sample=False,
                pad_token_id=eos[0] if isinstance(eos, list) else eos,
            )
        if self.frozen:
            return [text.strip() for text in self._tokenizer.batch_decode(written, skip_special_tokens=True)]
        return tokens.decode(self._tokenizer, written)

    def _prefix(self, queries: Tensor) -> Tensor:
        entered: Tensor = self.enter(queries)
        return entered.to(self.model.dtype)


def _pretrained(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"trust_remote_code": False}
    with reading(f"{name}'s tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name} has no token that ends a text: choose another decoder.")
    model = read_model(AutoModelForCausalLM, name, config=read_config(name, where), dtype="float32", **where)
    return model.requires_grad_(False), tokenizer
