"""What the Q-Former sees of a picture: early and late feature maps of a frozen EfficientNet-Lite0, and its colours.

The last layers of a classifier have lost much of the colour, so a grid of an early block, the mean colour of every cell
and two colour histograms stand beside the last grid and the pooled vector.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from models.common.colours import to_lab
from models.common.encoders import IMAGE_WIDTH, image_encoder, square
from models.common.rows import encode_rows

EARLY, LAST = 4, 15  # blocks of the network: 40 channels on 28 x 28 places, 320 on 7 x 7
GRID = 7
CELLS = GRID * GRID
LAST_WIDTH, EARLY_WIDTH = 320, 2 * 40 + 3
BITS = 3  # of each channel, that a colour's bin is looked up by
BINS = 1 << 3 * BITS
HISTOGRAMS = 2
ROWS = 1_024  # that are pooled at a time


class Parts(NamedTuple):
    """Parts of a picture's features, each [N, tokens, width].

    Attributes:
        last: 49 cells of the last block.
        pooled: one token, the vector of `ImageEncoder.encode`.
        early: 49 cells: mean and deviation of an early block's channels, and the mean colour in CIELAB over 100.
        colours: roots of the shares of 512 colours, of the whole picture and of its middle.
    """

    last: Tensor
    pooled: Tensor
    early: Tensor
    colours: Tensor


SHAPES = ((CELLS, LAST_WIDTH), (1, IMAGE_WIDTH), (CELLS, EARLY_WIDTH), (HISTOGRAMS, BINS))  # of `Parts`, in order
WIDTH = sum(tokens * width for tokens, width in SHAPES)


def look(pictures: list[np.ndarray]) -> np.ndarray:
    """Encodes pictures (uint8 [H, W, 3], any sizes) to float16 [N, WIDTH], each as if it were alone."""
    encoder = image_encoder()

    def network(rows: list[int]) -> Tensor:
        return torch.cat([_look(encoder.feature_maps(pictures[row], EARLY, LAST), pictures[row]) for row in rows])

    features = np.zeros((len(pictures), WIDTH), np.float16)
    return encode_rows(features, [range(len(pictures))], network, device=torch.device("cpu"))


def parts(features: Tensor) -> Parts:
    """Cuts features [N, WIDTH] into their parts."""
    cut = features.split([tokens * width for tokens, width in SHAPES], dim=1)
    return Parts(*(part.unflatten(1, shape) for part, shape in zip(cut, SHAPES, strict=True)))


def pooled(features: np.ndarray, rows: np.ndarray) -> Tensor:
    """Returns one vector for each of some rows of features [N, WIDTH], float32 [rows, 2,387], for linear models.

    The pooled vector, the means of the early cells, and the colours.
    """
    found = []
    for start in range(0, len(rows), ROWS):
        cut = parts(torch.from_numpy(features[rows[start : start + ROWS]]).float())
        found.append(torch.cat([cut.pooled.flatten(1), cut.early.mean(1), cut.colours.flatten(1)], dim=1))
    return torch.cat(found)


def _look(maps: tuple[Tensor, ...], picture: np.ndarray) -> Tensor:
    early, last, head = (part.cpu() for part in maps)
    pixels = square(picture)
    side = early.shape[-1] // GRID
    mean, square_mean = F.avg_pool2d(early, side), F.avg_pool2d(early.square(), side)
    deviation = (square_mean - mean.square()).clamp_min(0).sqrt()
    small = F.adaptive_avg_pool2d(pixels.float(), GRID).round().to(torch.uint8)
    lab = torch.from_numpy(to_lab(small[0].permute(1, 2, 0).numpy())).flatten(0, 1) / 100
    grid = torch.cat([mean[0].flatten(1).T, deviation[0].flatten(1).T, lab], dim=1)
    quarter = pixels.shape[-1] // 4
    middle = pixels[..., quarter:-quarter, quarter:-quarter]
    colours = torch.stack([_histogram(pixels), _histogram(middle)])
    found = (last[0].flatten(1).T, head.mean(dim=(2, 3)), grid, colours)
    return torch.cat([part.flatten() for part in found]).unsqueeze(0)


def _histogram(pixels: Tensor) -> Tensor:
    red, green, blue = (pixels[0] >> (8 - BITS)).long()
    bins = (((red << BITS) | green) << BITS) | blue
    counts = torch.bincount(bins.flatten(), minlength=BINS)
    return (counts / counts.sum()).sqrt()
