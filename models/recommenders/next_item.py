"""What SASRec, product codes and RPG share: how histories are read, learned from and answered, and the artifact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn
from torch.nn import functional

from models.common.jagged import Jagged, gather, padded
from models.common.recommender import Recommended, best, blocks, concatenate
from models.common.settings import Settings
from models.recommenders.encoder import Block, Encoder
from models.recommenders.sprint import SprintConfig
from storage.artifacts import save_model

USERS = 512  # per block of answers, at most


class EncoderConfig(Settings):
    """Size of the encoder.

    Attributes:
        dim: of the vectors of items.
        layers, heads, inner: transformer blocks, their attention heads, and the width between their two linear layers.
        dropout: of vectors and attention.
        block_dropout: of what blocks add; null: as `dropout`.
        length: items of a history that are read, the last ones.
        item_dropout: share of a history's items that a training step leaves out, so that what follows an item is
            learned from more than one history.
        popularity_penalty: times the log of an item's events in training, taken from its score in every answer and
            from nothing in training; 0: none.
        cold_bonus: added to the score of an item without an event in training in every answer; `auto`: what is best on
            validation.
    """

    dim: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    inner: PositiveInt = 256
    dropout: float = Field(0.5, ge=0, lt=1)
    block_dropout: float | None = Field(None, ge=0, lt=1)
    length: PositiveInt = 50
    item_dropout: float = Field(0.0, ge=0, lt=1)
    popularity_penalty: float = Field(0.0, ge=0)
    cold_bonus: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> EncoderConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads: write dim: {self.heads * (self.dim // self.heads + 1)}")
        return self


class NextItemModel(nn.Module, ABC):
    """Predicts each item of a history from those before it; the first one from a learned start."""

    kind: ClassVar[str]  # of the artifact, and the recommender's name
    layers = (Block.__name__,)  # see `models.common.data_parallel.Learner`
    tables: ClassVar[tuple[str, ...]] = ()  # parameters with a row for every item

    def __init__(
        self,
        config: EncoderConfig,
        *,
        items: int,
        counts: torch.Tensor | None = None,
        sprint: SprintConfig = SprintConfig(),  # noqa: B008 - frozen
    ) -> None:
        """Takes the number of items, N, and how often training chooses each, int64 [N]; None: all alike."""
        super().__init__()
        self.config, self.items = config, items
        self.start = nn.Parameter(torch.zeros(config.dim))
        self.encoder = Encoder(
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            inner=config.inner,
            share=config.dropout,
            block_share=config.dropout if config.block_dropout is None else config.block_dropout,
            length=config.length + 1,
            sprint=sprint,
        )
        self.penalty: torch.Tensor | None
        self.register_buffer("penalty", None)
        self._adjust(torch.ones(items) if counts is None else counts)

    @classmethod
    @abstractmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> NextItemModel:
        """Rebuilds a model from its `artifact_config` and its tensors."""

    @abstractmethod
    def inputs(self, items: torch.Tensor) -> torch.Tensor:
        """Returns what the encoder reads of items, int64 [n]: [n, D]."""

    @abstractmethod
    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss, float32 [], of states [P, D] whose next items are `target`, int64 [P]."""

    def limit(self) -> None:
        """Keeps weights within their bounds; called after every step."""

    @abstractmethod
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the scores of all items, float32 [B, N], for states [B, D]."""

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss over every item of the windows, int64 [B, T] with `items` behind shorter ones.

        In training mode with the encoder's penalty.
        """
        keep = windows < self.items
        states, penalty = self._states(windows[:, :-1])
        return self.mean_loss(states[keep], windows[keep]) + penalty * keep.any()

    def weight(self, windows: torch.Tensor) -> torch.Tensor:
        """Returns how many items that mean is over."""
        return (windows < self.items).sum()

    def windows(self, sequences: Jagged, rows: torch.Tensor) -> torch.Tensor:
        """Returns the last items of the sequences at `rows`, int64 [B, T], with `items` behind shorter ones."""
        return padded(gather(sequences, rows), length=self.config.length + 1, fill=self.items)

    def thinned(self, windows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Returns windows without a share of their items, `config.item_dropout`, each row with two at least.

        A row closes up; its order stays. CL4SRec (Xie et al., arXiv 2010.14395) crops, masks and reorders sequences for
        a contrastive loss; here items are left out, and the loss is the model's own.
        """
        real = windows < self.items
        kept = real & (torch.rand(windows.shape, generator=random) >= self.config.item_dropout)
        kept = torch.where(kept.sum(1, keepdim=True) < 2, real, kept)
        places = (~kept).int().argsort(dim=1, stable=True)
        closed = torch.where(kept, windows, self.items).gather(1, places)
        return closed[:, : max(1, int(kept.sum(1).max()))]

    @torch.no_grad()
    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`."""
        found = []
        for part, own in blocks(histories, banned, values=self.items, most=USERS):
            found.append(self.top(self._last(part), k=k, banned=own, allowed=allowed))
        return concatenate(found, k=k)

    def top(self, hidden: torch.Tensor, *, k: int, banned: Jagged | None, allowed: torch.Tensor | None) -> Recommended:
        """Returns the k best items for states [B, D]."""
        return best(self.ranked(hidden).cpu(), k=k, banned=banned, allowed=allowed)

    def penalise(self, penalty: float, counts: torch.Tensor) -> None:
        """Sets what is taken from scores in answers: a penalty times the log of how often training chooses an item.

        This is the post-hoc logit adjustment of Menon et al. (ICLR 2021, arXiv 2007.07314). What all users share of a
        softmax's scores is the log of popularity (arXiv 2606.21275). An item without an event counts as if it had one,
        and keeps its bonus.

        Args:
            penalty: 0 or more.
            counts: of every item, [N].
        """
        bonus = 0.0 if self.config.cold_bonus == "auto" else self.config.cold_bonus
        taken = penalty * counts.clamp_min(1).float().log() - bonus * (counts == 0)
        self.penalty = taken.to(self.start.device)

    def favour_cold(self, bonus: float, counts: torch.Tensor) -> None:
        """Sets the bonus of items without an event in the place of `config.cold_bonus`, also for the artifact.

        Args:
            bonus: 0 or more.
            counts: of every item, [N].
        """
        self.config = self.config.model_copy(update={"cold_bonus": bonus})
        self._adjust(counts)

    def _adjust(self, counts: torch.Tensor) -> None:
        """Sets what is taken from scores by the settings; where they take nothing there is no such tensor."""
        self.penalty = None
        if self.config.popularity_penalty or self.config.cold_bonus:
            self.penalise(self.config.popularity_penalty, counts)

    def ranked(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns what items are ranked by, float32 [B, N]: their scores, less the penalty, with the bonus."""
        scores = self.scores(hidden)
        return scores if self.penalty is None else scores - self.penalty

    @torch.no_grad()
    def log_probs(self, histories: Jagged) -> torch.Tensor:
        """Returns what items are ranked by as log-probabilities over the catalogue, float32 [B, N], on the CPU."""
        return self.ranked(self._last(histories)).log_softmax(-1).cpu()

    def artifact_config(self) -> dict[str, Any]:
        """Returns what rebuilds the module beside its tensors."""
        return {"config": self.config.model_dump(mode="json"), "items": self.items}

    def save(self, uri: str, state: dict[str, torch.Tensor]) -> None:
        """Writes an artifact for `models.recommenders.artifacts.load`.

        Args:
            uri: a folder.
            state: the whole state dict, as `models.common.data_parallel.gather_state` returns it.
        """
        save_model(uri, self.kind, self.artifact_config(), state)

    def _last(self, histories: Jagged) -> torch.Tensor:
        """Returns the state behind every history, [B, D]."""
        read = padded(histories, length=self.config.length, fill=self.items).to(self.start.device)
        lengths = histories.offsets.diff().clamp_max(self.config.length)
        return self._states(read)[0][torch.arange(len(lengths)), lengths]

    def _states(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States before each item and behind the last one, [B, T + 1, D], for items [B, T]; the encoder's penalty."""
        known = items < self.items
        vectors = self.inputs(items[known])
        read = vectors.new_zeros(*items.shape, vectors.shape[-1]).index_put((known,), vectors)
        start = self.start.to(read).expand(len(items), 1, -1)
        return self.encoder(torch.cat([start, read], dim=1), functional.pad(known, (1, 0), value=True))
