"""A vector as a short list of codes: residual quantization, in the space of the vectors or in a learned one.

The latent is the sum of one codeword from each of L codebooks; each level codes what the levels before it left over.
`rqkmeans` has its codebooks in the space of the vectors themselves. `rqvae` puts an autoencoder around them: Lee et
al., "Autoregressive Image Generation using Residual Quantization" (CVPR 2022), as used for semantic IDs by Rajput et
al., "Recommender Systems with Generative Retrieval" (NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn

from models.semantic_ids.kmeans import BLOCK_ROWS, argmin
from storage.artifacts import load_model, rebuilding, save_model

RQKMEANS, RQVAE = "rqkmeans", "rqvae"


def suited_sizes(items: int) -> tuple[int, ...]:
    """Returns codebook sizes for a catalogue: about 30 items or more to a code, 16 times as many IDs as items.

    A level has 4 to 256 codes, a power of two. Small codebooks make up for it by more levels, at least 3: what is
    learned of a code that few items have helps no other item.

    >>> suited_sizes(800), suited_sizes(100_000)
    ((16, 16, 16, 16), (256, 256, 256))
    """
    size, levels = min(max(4, 1 << max(1, items // 30).bit_length() - 1), 256), 3
    while size**levels < 16 * items:
        levels += 1
    return (size,) * levels


@dataclass(frozen=True)
class Architecture:
    """Shape of a quantizer.

    Attributes:
        method: `rqkmeans` or `rqvae`.
        input_dim: D, width of the vectors.
        codebook_sizes: codewords per level.
        latent_dim: width of the codewords; that of the vectors for `rqkmeans`.
        hidden_dims: widths of the hidden layers of encoder and, in reverse, of the decoder of `rqvae`.
        whiten: give all directions about the same variance before vectors are encoded, see `Quantizer.inputs`.
    """

    method: str
    input_dim: int
    codebook_sizes: tuple[int, ...]
    latent_dim: int
    hidden_dims: tuple[int, ...] = ()
    whiten: bool = False


class Quantizer(nn.Module):
    """Encoder, residual codebooks and decoder over centred inputs of unit scale.

    Inputs lose their mean and are divided by one scale for all dimensions: enough against the collapse of small
    inputs, while distances keep their proportions (dividing each dimension would blow up the last components of a PCA).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    whitening: torch.Tensor
    unwhitening: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = (architecture.input_dim, *architecture.hidden_dims, architecture.latent_dim)
        learned = architecture.method == RQVAE
        self.encoder: nn.Module = Shortcut(widths) if learned else nn.Identity()
        self.decoder: nn.Module = Shortcut(widths[::-1]) if learned else nn.Identity()
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.zeros(size, architecture.latent_dim), requires_grad=False)
            for size in architecture.codebook_sizes
        )
        self.register_buffer("offsets", torch.zeros(sum(architecture.codebook_sizes)))  # see `kmeans.balance`
        self.register_buffer("mean", torch.zeros(architecture.input_dim))
        self.register_buffer("scale", torch.ones(()))
        if architecture.whiten:
            self.register_buffer("whitening", torch.eye(architecture.input_dim))
            self.register_buffer("unwhitening", torch.eye(architecture.input_dim))

    def standardise(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, D] without their mean, at unit scale."""
        scale = float(self.scale)
        return torch.add(-self.mean / scale, embeddings, alpha=1 / scale)  # in one pass

    def inputs(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, D] as the encoder sees them: standardised and, with `whiten`, whitened.

        Without whitening the first codes tell apart what varies most. The symmetric map (ZCA) changes vectors least.
        """
        standardised = self.standardise(embeddings)
        return standardised @ self.whitening if self.architecture.whiten else standardised

    @torch.no_grad()
    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes of latents [N, d], int64 [N, L]: level by level the codeword nearest to what is left."""
        return torch.cat(list(self._quantized(block.clone() for block in latents.split(BLOCK_ROWS))))

    def _quantized(self, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Codes of one block of latents after the other, which end as residuals.

        Buffers are made once: fresh memory costs more than what is done in it.
        """
        words = [codebook.detach() for codebook in self.codebooks]
        bias = [word.square().sum(1) + offsets for word, offsets in zip(words, self.level_offsets, strict=True)]
        chosen = words[0].new_empty(BLOCK_ROWS, words[0].shape[1])
        scores = [words[0].new_empty(BLOCK_ROWS, len(word)) for word in words]
        for residual in blocks:
            rows = len(residual)
            codes: list[torch.Tensor] = []
            for level, word in enumerate(words):
                if level:
                    residual -= torch.index_select(words[level - 1], 0, codes[-1], out=chosen[:rows])
                codes.append(argmin(torch.addmm(bias[level], residual, word.T, alpha=-2, out=scores[level][:rows])))
            yield torch.stack(codes, dim=1)

    @property
    def level_offsets(self) -> tuple[torch.Tensor, ...]:
        """Per level what is added to the squared distances of its codewords, float [K]."""
        return self.offsets.split(self.architecture.codebook_sizes)

    @torch.no_grad()
    def encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Semantic IDs, int32 [N, L], of embeddings [N, D], without the deduplication suffix."""
        codes = torch.empty(len(embeddings), len(self.codebooks), dtype=torch.int32, device=embeddings.device)
        latents = (self.encoder(self.inputs(block)) for block in embeddings.split(BLOCK_ROWS))
        for into, block in zip(codes.split(BLOCK_ROWS), self._quantized(latents), strict=True):
            into.copy_(block)
        return codes

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, D] that codes [N, h] stand for; h below L decodes the first levels alone."""
        latents = sum(F.embedding(code.long(), words) for code, words in zip(codes.T, self.codebooks, strict=False))
        outputs = self.decoder(latents)
        if self.architecture.whiten:
            outputs = outputs @ self.unwhitening
        return outputs * self.scale + self.mean

    @torch.no_grad()
    def last_distances(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Squared distances, float [N, K_L], of what is left for the last level to each of its codewords."""
        residual = self.encoder(self.inputs(embeddings))
        for code, codebook in zip(self.quantize(residual).T[:-1], self.codebooks, strict=False):
            residual = residual - F.embedding(code, codebook)
        return torch.cdist(residual, self.codebooks[-1]).square() + self.level_offsets[-1]

    def save(self, uri: str) -> None:
        """Writes the artifact (kind `quantizer`)."""
        config = asdict(self.architecture)
        if not self.architecture.whiten:  # as before there was such an option: the digest of an artifact stays
            del config["whiten"]
        save_model(uri, "quantizer", config, self.state_dict())

    @staticmethod
    def load(uri: str) -> Quantizer:
        """Reads the artifact, ready to assign.

        Raises:
            ArtifactError: there is none, it is damaged, or it is another thing.
        """
        config, tensors = load_model(uri, "quantizer")
        with rebuilding(uri, "quantizer"):
            widths = {name: tuple(config[name]) for name in ("hidden_dims", "codebook_sizes")}
            if config["method"] not in (RQKMEANS, RQVAE):
                raise ValueError(f"its method is {config['method']!r}")
            with torch.device("meta"):  # nothing is held for sizes that the tensors do not have
                quantizer = Quantizer(Architecture(**{**config, **widths}))
            quantizer.load_state_dict(tensors, assign=True)
        return quantizer.requires_grad_(False).eval()


class Shortcut(nn.Module):
    """A linear map plus an MLP that starts at zero.

    With the principal axes as the linear map, a fit starts where residual k-means ends, and only gets better.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(widths[0], widths[-1], bias=False)
        maps = [nn.Linear(before, after) for before, after in pairwise(widths)]
        nn.init.zeros_(maps[-1].weight)
        nn.init.zeros_(maps[-1].bias)
        self.mlp = nn.Sequential(*(layer for linear in maps for layer in (nn.ReLU(), linear)))[1:]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Maps [N, first width] to [N, last width]."""
        return self.linear(inputs) + self.mlp(inputs)
