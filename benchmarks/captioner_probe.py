"""How well an MLP names the article type and the colour of the fashion photos from what the captioner sees of them.

It reads the pooled last features, the pooled early features and the two colour histograms of each photo, has 512 hidden
units, and is fitted with five settings, of which the best on the validation photos is judged on the test photos.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.fashion import KINDS, Photos, lexicon
from models.qformer.vision import pooled

HIDDEN = 512
EPOCHS, BATCH = 40, 256


class Setting(NamedTuple):
    """What is chosen on the validation photos."""

    learning_rate: float
    weight_decay: float
    dropout: float


SETTINGS = (
    Setting(1e-3, 0.01, 0.3),
    Setting(1e-3, 0.1, 0.5),
    Setting(3e-4, 0.01, 0.3),
    Setting(3e-4, 0.1, 0.5),
    Setting(3e-4, 0.1, 0.7),
)


def probe(photos: Photos, features: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Returns the shares of test photos whose type and colour the probe names, exactly and by a synonym."""
    x = pooled(features, np.arange(len(features)))
    mean, deviation = x[photos.split["train"]].mean(0), x[photos.split["train"]].std(0).clamp_min(1e-3)
    x = (x - mean) / deviation
    scores: dict[str, float] = {}
    for kind in KINDS:
        words = lexicon(kind)
        truth = torch.tensor([words.number(name) for name in photos.table[kind]])
        families = torch.tensor(words.families)
        best = max((_fitted(x, truth, photos.split, setting, seed) for setting in SETTINGS), key=lambda found: found[0])
        said, test = best[1], truth[photos.split["test"]]
        scores[kind] = float((said == test).float().mean())
        scores[f"{kind}_synonyms"] = float((families[said] == families[test]).float().mean())
    return scores


def _fitted(x: Tensor, y: Tensor, split: dict[str, slice], setting: Setting, seed: int) -> tuple[float, Tensor]:
    """Returns the best accuracy on the validation photos over all epochs, and what is said of the test photos then."""
    torch.manual_seed(seed)
    first, last = nn.Linear(x.shape[1], HIDDEN), nn.Linear(HIDDEN, int(y.max()) + 1)
    network = nn.Sequential(nn.Dropout(setting.dropout / 2), first, nn.GELU(), nn.Dropout(setting.dropout), last)
    optimizer = torch.optim.AdamW(network.parameters(), setting.learning_rate, weight_decay=setting.weight_decay)
    train = torch.arange(len(x))[split["train"]]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    best = (-1.0, y)
    for _ in range(EPOCHS):
        network.train()
        for rows in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
        network.eval()
        with torch.inference_mode():
            valid = float((network(x[split["valid"]]).argmax(1) == y[split["valid"]]).float().mean())
            if valid > best[0]:
                best = (valid, network(x[split["test"]]).argmax(1))
    return best
