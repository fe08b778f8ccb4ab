from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from models.common.llama import Tiny
from models.qformer.model import CaptionModel
from models.qformer.settings import Architecture
from models.qformer.tokens import fit_tokenizer

SMALL = Architecture(
    dim=16,
    heads=2,
    layers=2,
    mlp=32,
    queries=3,
    pooled_tokens=2,
    joint=8,
    vocabulary=512,
    text_tokens=10,
    decoder=Tiny(dim=16, layers=2, heads=2, mlp=32),
)
COLOURS, THINGS = ("red", "blue", "green", "black"), ("mug", "shoe", "lamp")
TEXTS = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return fit_tokenizer(TEXTS, 512)


@pytest.fixture
def model(tokenizer: Tokenizer) -> CaptionModel:
    torch.manual_seed(0)
    return CaptionModel(SMALL, tokenizer).eval()
