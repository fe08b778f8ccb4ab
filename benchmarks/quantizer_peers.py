"""The peers of `benchmarks.quantizer`: vector-quantize-pytorch and semantic-id, in the best settings that we found.

Every `fit_*` takes standardised rows, float32 [N, D], `Settings`, a seed, and `watch`, and returns a `Peer`. `watch` is
called with the unfinished peer every `watch_every` steps, as soon as it can encode; its seconds do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from semantic_id import RQKMeans


@dataclass(frozen=True)
class Settings:
    """Settings that all variants share.

    Attributes:
        steps: optimiser steps.
        batch_size: rows per step.
        learning_rate: initial learning rate; decays to zero along half a cosine.
        latent_dim: width of the codewords.
        hidden_dims: widths between input and latent, and back.
        codebook_sizes: codewords per level.
        watch_every: steps between two calls of `watch`.
    """

    steps: int
    batch_size: int
    learning_rate: float
    latent_dim: int
    hidden_dims: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    watch_every: int


class Peer(Protocol):
    """A quantizer during or after its fit."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Returns codes, int64 [M, L], of rows [M, D]."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the rows [M, D] of codes [M, h]; h may be below L."""


Watch = Callable[[Peer], None]

# Chosen by trial. A batch has about one row per codeword, so averages over five batches (the default decay, 0.8) are
# noise, and the guide's threshold of 2 would replace most codewords at every step.
VQ_PYTORCH: dict[str, Any] = {
    "kmeans_init": True,
    "kmeans_iters": 50,
    "decay": 0.99,
    "commitment_weight": 0.25,
    "threshold_ema_dead_code": 0.1,
    "rotation_trick": False,
}


def fit_vq_pytorch(train: torch.Tensor, settings: Settings, seed: int, watch: Watch) -> Peer:
    """Fits vector-quantize-pytorch's `ResidualVQ` between two perceptrons, as in its example."""
    return _fit_vq(train, settings, seed, watch, residual=False)


def fit_vq_pytorch_residual(train: torch.Tensor, settings: Settings, seed: int, watch: Watch) -> Peer:
    """Fits the same inside our autoencoder; the latent is as wide as the rows, `latent_dim` is ignored."""
    return _fit_vq(train, settings, seed, watch, residual=True)


def fit_semantic_id(train: torch.Tensor, settings: Settings, seed: int, watch: Watch) -> Peer:
    """Fits semantic-id's `RQKMeans`, which its guide starts with and which is the better of its two here.

    It runs scikit-learn's k-means level by level, without steps, so `watch` is called once, at the end.
    """
    from semantic_id import RQKMeans

    sizes = list(settings.codebook_sizes)
    model = RQKMeans(n_levels=len(sizes), n_clusters=sizes, random_state=seed, n_init=1).fit(train.numpy())
    peer = SemanticIdKMeans(model)
    watch(peer)
    return peer


def fit_semantic_id_rqvae(train: torch.Tensor, settings: Settings, seed: int, watch: Watch) -> Peer:
    """Fits semantic-id's `RQVAE`: its network, loss and k-means initialisation in our loop.

    Its own `fit` returns the weights of its first epoch unless `verbose` is set (without it the collision rate of every
    epoch is recorded as zero, and the first of equal epochs is kept).
    """
    return _fit(lambda: SemanticIdRqvae(train.shape[1], settings), train, settings, seed, watch, settings.steps // 10)


class SemanticIdKMeans:
    """Adapter of semantic-id's `RQKMeans` to tensors."""

    def __init__(self, model: RQKMeans) -> None:
        self.model = model

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Returns codes, int64 [M, L], of rows [M, D]."""
        return torch.from_numpy(self.model.encode(x.numpy())).long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns rows [M, D] of codes [M, h]."""
        return torch.from_numpy(self.model.decode(codes.numpy()))


class SemanticIdRqvae(nn.Module):
    """The network inside semantic-id's `RQVAE`."""

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        from semantic_id import RQVAE

        sizes, hidden = list(settings.codebook_sizes), list(settings.hidden_dims)
        self.network = RQVAE(width, sizes, e_dim=settings.latent_dim, layers=hidden, kmeans_init=True).module

    def reconstruction(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared error of the autoencoder alone, a scalar."""
        return functional.mse_loss(self.network.decoder(self.network.encoder(x)), x)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the library's loss, a scalar."""
        rows, quantization, _ = self.network(x)
        return self.network.compute_loss(rows, quantization, x)[0]

    def start(self, train: torch.Tensor) -> None:
        """Initialises the codebooks from all rows instead of the first batch."""
        self.loss(train)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Returns codes, int64 [M, L], of rows [M, D]."""
        return self.network.get_indices(x)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns rows [M, D] of codes [M, h]."""
        levels = zip(self.network.rq.vq_layers, codes.T, strict=False)
        return self.network.decoder(torch.stack([level.get_codebook_entry(code) for level, code in levels]).sum(0))


class VqPytorch(nn.Module):
    """Perceptrons (Linear, GELU) around `ResidualVQ`.

    With `residual` both perceptrons add to their inputs and their last layers start at zero, so the fit starts at
    residual k-means of the rows.
    """

    def __init__(self, width: int, settings: Settings, *, residual: bool) -> None:
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        widths = (width, *settings.hidden_dims, width if residual else settings.latent_dim)
        self.residual = residual
        self.encoder, self.decoder = _perceptron(widths), _perceptron(widths[::-1])
        if residual:
            for parameter in (*self.encoder[-1].parameters(), *self.decoder[-1].parameters()):
                nn.init.zeros_(parameter)
        self.batch_size = settings.batch_size
        self.quantizer = ResidualVQ(dim=widths[-1], codebook_size=settings.codebook_sizes, **VQ_PYTORCH)

    def to_latents(self, x: torch.Tensor) -> torch.Tensor:
        """Returns latents [M, d] of rows [M, D]."""
        return x + self.encoder(x) if self.residual else self.encoder(x)

    def to_rows(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns rows [M, D] of latents [M, d]."""
        return latents + self.decoder(latents) if self.residual else self.decoder(latents)

    def reconstruction(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared error of the autoencoder alone, a scalar."""
        return functional.mse_loss(self.to_rows(self.to_latents(x)), x)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared error through the codewords plus the commitment losses of all levels, a scalar."""
        quantized, _, commitment = self.quantizer(self.to_latents(x))
        return functional.mse_loss(self.to_rows(quantized), x) + commitment.sum()

    def start(self, train: torch.Tensor) -> None:
        """Initialises the codebooks by k-means over all rows, which count as one batch in the moving averages."""
        self.loss(train)
        for level in self.quantizer.layers:
            level._codebook.cluster_size *= self.batch_size / len(train)
            level._codebook.embed_avg *= self.batch_size / len(train)

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Returns codes, int64 [M, L], of rows [M, D]."""
        return self.quantizer(self.to_latents(x))[1]

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns rows [M, D] of codes [M, h]; -1 leaves a level out."""
        missing = len(self.quantizer.layers) - codes.shape[1]
        return self.to_rows(self.quantizer.get_output_from_indices(functional.pad(codes, (0, missing), value=-1)))


def _fit_vq(train: torch.Tensor, settings: Settings, seed: int, watch: Watch, *, residual: bool) -> Peer:
    warm_up = 0 if residual else settings.steps // 10
    return _fit(lambda: VqPytorch(train.shape[1], settings, residual=residual), train, settings, seed, watch, warm_up)


def _fit(
    build: Callable[[], VqPytorch | SemanticIdRqvae],
    train: torch.Tensor,
    settings: Settings,
    seed: int,
    watch: Watch,
    warm_up: int,
) -> Peer:
    """Fits with AdamW, as both libraries do: `warm_up` steps without the quantizer, then with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peer = build().train()
        optimizer = torch.optim.AdamW(peer.parameters(), settings.learning_rate, weight_decay=0.0, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        batches = _batches(len(train), settings.batch_size)
        for step in range(settings.steps):
            if step == warm_up:
                with torch.no_grad():
                    peer.start(train)
            optimizer.zero_grad()
            (peer.reconstruction if step < warm_up else peer.loss)(train[next(batches)]).backward()
            optimizer.step()
            decay.step()
            if step >= warm_up and (step + 1) % settings.watch_every == 0:
                with torch.random.fork_rng(devices=[]):
                    watch(peer.eval())
                peer.train()
    return peer.eval()


def _batches(rows: int, size: int) -> Iterator[torch.Tensor]:
    """Yields shuffled batches of row numbers, endlessly."""
    while True:
        yield from torch.randperm(rows).split(size)


def _perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])
