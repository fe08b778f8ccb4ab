"""Sizes of the captioner, and how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from models.common.llama import Tiny
from models.common.settings import ModelName, Settings


class SmolLM2Decoder(Settings):
    """The packaged SmolLM2-135M-Instruct, frozen."""

    name: Literal["smollm2"]


class PretrainedDecoder(Settings):
    """Any causal language model of transformers, frozen: a folder, or a name on the Hugging Face hub."""

    name: Literal["pretrained"]
    model: ModelName


Decoder = Annotated[Tiny | SmolLM2Decoder | PretrainedDecoder, Field(discriminator="name")]


class Architecture(Settings):
    """Sizes of the Q-Former and its decoder.

    Attributes:
        dim, heads, layers, mlp: of the Q-Former; every other layer, the first one included, attends to the picture.
        queries: learned queries, which are the decoder's prefix.
        pooled_tokens: tokens that the pooled vector of the picture is spread over.
        joint: width of the space that pictures and texts share.
        vocabulary: tokens of the texts, at most.
        text_tokens: longest text, in tokens, the end with it.
        dropout: of embeddings and of what layers add.
        unseen: share of the picture's tokens that a training step hides.
        decoder: the language model that writes captions.
    """

    dim: PositiveInt = 128
    heads: PositiveInt = 4
    layers: PositiveInt = 4
    mlp: PositiveInt = 512
    queries: PositiveInt = 12
    pooled_tokens: PositiveInt = 4
    joint: PositiveInt = 128
    vocabulary: int = Field(4096, ge=512)
    text_tokens: int = Field(24, ge=8)
    dropout: float = Field(0.1, ge=0, lt=1)
    unseen: float = Field(0.2, ge=0, lt=1)
    decoder: Decoder = Tiny(dim=192, layers=3, heads=3, mlp=512)

    @model_validator(mode="after")
    def _heads_fit(self) -> Architecture:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, {self.heads}")
        return self


class Phase(Settings):
    """How one stage of training goes: AdamW, linear warm-up, half a cosine down to a tenth.

    Attributes:
        steps: of the optimizer; 0 leaves the stage out.
        batch_size: pictures of a step, over all workers together.
        learning_rate: its peak.
        validate_every: steps between two looks at the held-out pictures.
    """

    steps: int = Field(300, ge=0)
    batch_size: PositiveInt = 128
    learning_rate: float = Field(1e-3, gt=0)
    validate_every: PositiveInt = 100


class Recipe(Settings):
    """How a captioner is trained: in two stages, as BLIP-2 is.

    Attributes:
        align: stage 1, without the decoder: contrast, matching, and text written by the Q-Former itself.
        write: stage 2: captions through the decoder.
        texts: texts of a picture that a step of stage 1 contrasts.
        mask_own: other texts of a picture are no negatives of it (MuCo, arXiv 2602.06393).
        matched: share of a step's pictures that matching looks at; it costs as much as the rest.
        weight_decay: of matrices.
        warmup: share of the steps.
        label_smoothing: of written tokens.
    """

    align: Phase = Phase()
    write: Phase = Phase()
    texts: PositiveInt = 2
    mask_own: bool = True
    matched: float = Field(0.125, gt=0, le=1)
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
