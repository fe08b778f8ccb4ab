"""A small Llama from scratch (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, tied embeddings."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator

from models.common.dropout import dropout
from models.common.settings import Settings


class Tiny(Settings):
    """Settings of a small Llama from scratch.

    Attributes:
        dim: width of the model; `mlp`: hidden width of its networks.
        dropout: of embeddings and of what each attention and network adds (Vaswani et al. 2017, section 5.4); none in
            the attention weights, where it costs the fast kernels.
    """

    name: Literal["tiny"] = "tiny"
    layers: PositiveInt = 4
    dim: PositiveInt = 128
    heads: PositiveInt = 4
    mlp: PositiveInt = 512
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Tiny:
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dim must be a multiple of twice the heads, {2 * self.heads}: rotary positions turn pairs"
            )
        return self


def tiny_llama(settings: Tiny, rows: int, *, pad: int, bos: int, eos: int) -> Any:
    """Returns a causal language model of transformers with so many rows of embeddings, drawn by torch's generator.

    Args:
        settings: sizes.
        rows: of the embeddings.
        pad: token of padding.
        bos: token of the beginning.
        eos: token of the end.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=settings.dim,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")

    def drop(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return dropout(output, settings.dropout, training=module.training)

    parts = [model.model.embed_tokens]  # transformers' Llama has dropout in the attention weights alone
    parts += [part for layer in model.model.layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for part in parts if settings.dropout else []:
        part.register_forward_hook(drop)
    return model
