"""RQ-VAE: an autoencoder whose latent is a sum of codewords, one from each of L codebooks.

Lee et al., "Autoregressive Image Generation using Residual Quantization" (CVPR 2022), as used for semantic IDs by
Rajput et al., "Recommender Systems with Generative Retrieval" (NeurIPS 2023).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import nn

from models.kmeans import nearest
from storage.weights import load_model, save_model

BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Architecture:
    """Shape of a quantizer: MLP widths, latent width, codewords per level; `commitment` is the loss's β."""

    input_dim: int
    hidden_dims: tuple[int, ...] = (256, 128)
    latent_dim: int = 64
    codebook_sizes: tuple[int, ...] = (256, 256, 256)
    commitment: float = 0.25


@dataclass(frozen=True)
class Losses:
    """Sums over the rows of a batch, scalars with gradient: ‖x − x̂‖² and the quantisation terms of all levels."""

    reconstruction: torch.Tensor
    quantization: torch.Tensor


class Quantizer(nn.Module):
    """Encoder, residual codebooks and decoder over centred inputs of unit scale.

    Inputs lose their mean and are divided by one scale for all dimensions: enough against the collapse of small
    inputs, while distances keep their proportions (dividing each dimension would blow up the last components of a PCA).
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = (architecture.input_dim, *architecture.hidden_dims, architecture.latent_dim)
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.randn(size, architecture.latent_dim)) for size in architecture.codebook_sizes
        )
        self.register_buffer("mean", torch.zeros(architecture.input_dim))
        self.register_buffer("scale", torch.ones(()))

    def set_statistics(self, embeddings: torch.Tensor) -> None:
        """Take mean and scale from all embeddings, float [N, D]."""
        self.mean.copy_(embeddings.mean(0))
        self.scale.copy_((embeddings - self.mean).square().mean().sqrt().clamp_min(1e-6))

    def standardise(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, D] as the network sees them."""
        return (embeddings - self.mean) / self.scale

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy residual quantisation of latents [N, d].

        Returns:
            Codes, int64 [N, L], and the residual that each level saw, float [L, N, d]. The gradient reaches the
            latents through the residuals, and never the codewords that were subtracted.
        """
        residual, codes, residuals = latents, [], []
        for codebook in self.codebooks:
            code, _ = nearest(residual.detach(), codebook.detach())
            codes.append(code)
            residuals.append(residual)
            residual = residual - codebook.detach()[code]
        return torch.stack(codes, dim=1), torch.stack(residuals)

    def forward(self, inputs: torch.Tensor) -> Losses:
        """Losses of standardised inputs [N, D].

        ‖x − x̂‖² and Σ_h ‖sg[r_h] − c_h‖² + β ‖r_h − sg[c_h]‖², with the straight-through gradient of the decoder
        for the latent (van den Oord et al. 2017, equation 3).
        """
        latents = self.encoder(inputs)
        codes, residuals = self.quantize(latents)
        words = torch.stack([codebook[code] for codebook, code in zip(self.codebooks, codes.T, strict=True)])
        through = latents + (words.sum(0) - latents).detach()
        codebook_loss = (residuals.detach() - words).square().sum()
        commitment_loss = (residuals - words.detach()).square().sum()
        return Losses(
            (inputs - self.decoder(through)).square().sum(),
            codebook_loss + self.architecture.commitment * commitment_loss,
        )

    @torch.no_grad()
    def encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Semantic IDs, int32 [N, L], of embeddings [N, D], without the deduplication digit."""
        parts = [self.quantize(self.encoder(self.standardise(block)))[0] for block in embeddings.split(BLOCK_ROWS)]
        return torch.cat(parts).int()

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, D] that codes [N, h] stand for; h below L decodes the first levels alone."""
        latents = [codebook[code.long()] for codebook, code in zip(self.codebooks, codes.T, strict=False)]
        return self.decoder(torch.stack(latents).sum(0)) * self.scale + self.mean

    def save(self, uri: str) -> None:
        """Write the artifact (kind `quantizer`)."""
        save_model(uri, "quantizer", asdict(self.architecture), self.state_dict())

    @staticmethod
    def load(uri: str) -> Quantizer:
        """Read the artifact, ready to assign; raises UserError as `storage.weights.load_model` does."""
        config, tensors = load_model(uri, "quantizer")
        widths = {"hidden_dims": tuple(config["hidden_dims"]), "codebook_sizes": tuple(config["codebook_sizes"])}
        quantizer = Quantizer(Architecture(**{**config, **widths}))
        quantizer.load_state_dict(tensors)
        return quantizer.requires_grad_(False).eval()


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
