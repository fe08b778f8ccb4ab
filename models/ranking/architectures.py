"""The architectures that a ranker may have, by name; each is a file beside this one."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.ranking import dcnv2, dlrm, rankmixer
from models.ranking.config import Architecture

AUXILIARY_WEIGHT = 0.1  # of every auxiliary logit's loss beside that of the logit itself

TOWERS: dict[str, Callable[..., nn.Module]] = {"dlrm": dlrm.Tower, "dcnv2": dcnv2.Tower, "rankmixer": rankmixer.Tower}


def build(config: Architecture, *, fields: int, dim: int, dense: int) -> nn.Module:
    """Returns the tower above F fields as wide as `dim` and n dense features.

    Its `forward(fields [B, F, dim], dense [B, n])` gives logits float32 [1 + A, B], without a constant: the answer,
    then, only while training, those of A auxiliary heads (mostly none).
    """
    return TOWERS[config.name](config, fields=fields, dim=dim, dense=dense)
