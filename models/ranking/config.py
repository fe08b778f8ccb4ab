"""What a ranker is made of, in words: definitions read this without loading torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from models.common.settings import Settings

HISTORY = "history_"  # a table's feature `caption` has `history_caption` beside it: the same of the user's last items
LONG = "long_"  # and `long_caption`: the same of those that share most of the item's semantic ID

USER, ITEM = "user", "item"  # the tables of ids
SID = "sid"
CONTENT = "content"  # the field of an item's embedding
BAGS = ("caption", "interests", "title", "text", SID)  # the list features of an item

PLACES = 2**24  # float32, in which a KeyedJaggedTensor carries places of weights, counts so far without a gap

TableDtype = Literal["fp32", "fp16", "int8"]  # the last two for inference alone
Sharding = Literal["table_wise", "column_wise", "row_wise"]
EmbeddingOptimizer = Literal["rowwise_adagrad", "adagrad"]
Pooling = Literal["sum", "mean", "attention"]


class Table(Settings):
    """An embedding table and the features that look into it.

    Attributes:
        rows: of the table; row 0 is NULL, "nothing known".
        features: keys of the KeyedJaggedTensor.
        hashes: rows that one token takes from the table, k; more than 1 need importance weights.
        importance: rows of the importance weights P [importance, k]; 0 is none, all weights are 1.
    """

    rows: int = Field(ge=2)
    features: tuple[str, ...] = Field(min_length=1)
    pooling: Pooling = "sum"
    hashes: PositiveInt = 1
    importance: NonNegativeInt = 0

    @property
    def weighted(self) -> bool:
        """Whether the values of a bag have weights that are learned."""
        return self.importance > 0 or self.pooling == "attention"

    @model_validator(mode="after")
    def _weights_have_places(self) -> Table:
        if self.hashes > 1 and not self.importance:
            raise ValueError("several hashes need importance weights: set importance above 0")
        if self.weighted and (self.importance or self.rows) * self.hashes > PLACES:
            raise ValueError(f"a table has at most {PLACES} learned weights: lower importance, or rows under attention")
        return self


class Dlrm(Settings):
    """Settings of DLRM.

    Attributes:
        bottom: widths of the layers that lead the dense features to a vector as wide as a field.
        hidden: widths of the layers above the dot products.
    """

    name: Literal["dlrm"] = "dlrm"
    bottom: tuple[PositiveInt, ...] = (64,)
    hidden: tuple[PositiveInt, ...] = Field((128, 64), min_length=1)


class Dcnv2(Settings):
    """Settings of DCN-V2.

    Attributes:
        cross_layers: products with the input, each of one degree more.
        cross_rank: rank of their matrices; null: full.
        hidden: widths of the MLP's layers.
    """

    name: Literal["dcnv2"] = "dcnv2"
    cross_layers: PositiveInt = 3
    cross_rank: PositiveInt | None = None
    hidden: tuple[PositiveInt, ...] = Field((256, 128), min_length=1)


class RankMixer(Settings):
    """Settings of RankMixer and TokenMixer-Large.

    Attributes:
        block: `rankmixer`: mix, LayerNorm, GELU network, LayerNorm; `large`: mix, SwiGLU, mix back, SwiGLU, with
            RMSNorm before either, and a token that sees all fields.
        tokens: T, with the one that sees all; `dim`: D, their width.
        expansion: hidden width of the networks over the width of their tokens.
        heads: of large: slices that a token is cut into (null: as many as tokens). rankmixer has as many as tokens.
        inter_residual: to what every so many blocks give, the result of as many blocks before is added; never in the
            last block. 0: nowhere.
        auxiliary: train a logit on the result of every block with such a residual, too.
        experts, active: of large: cut each network into so many experts, of which a row's token takes the best
            `active`, beside one that all take. 0: neither.
    """

    name: Literal["rankmixer"] = "rankmixer"
    block: Literal["rankmixer", "large"] = "rankmixer"
    tokens: PositiveInt = 8
    dim: PositiveInt = 64
    layers: PositiveInt = 2
    expansion: PositiveInt = 2
    heads: PositiveInt | None = None
    inter_residual: NonNegativeInt = 0
    auxiliary: bool = False
    experts: NonNegativeInt = 0
    active: NonNegativeInt = 0

    @property
    def slices(self) -> int:
        """Slices that a token is cut into."""
        return self.heads or self.tokens

    @property
    def residuals(self) -> range:
        """Numbers, from 1, of the blocks that a residual from `inter_residual` blocks before is added to."""
        return range(self.inter_residual, self.layers, self.inter_residual) if self.inter_residual else range(0)

    @model_validator(mode="after")
    def _options_fit(self) -> RankMixer:
        if self.block == "rankmixer" and (self.heads or self.experts):
            raise ValueError("heads and experts are for block large: leave them out, or set block: large")
        if self.block == "large" and self.tokens == 1:
            raise ValueError("block large has a token that sees all fields: set tokens to 2 or more")
        if self.dim % self.slices:
            raise ValueError(f"dim must be a multiple of {'heads' if self.heads else 'tokens'}, {self.slices}")
        if self.inter_residual == 1:
            raise ValueError("inter_residual 1 adds what every block holds already: set it to 2 or more, or to 0")
        if self.inter_residual >= self.layers and self.inter_residual:
            raise ValueError(f"inter_residual must be below layers, {self.layers}: the last block takes no residual")
        if self.auxiliary and not self.inter_residual:
            raise ValueError("auxiliary logits stand where residuals do: set inter_residual to 2 or more")
        if bool(self.experts) != bool(self.active) or (self.experts and self.active >= self.experts):
            raise ValueError("experts and active go together: set active to 1 or more, and experts above it")
        hidden = [self.expansion * width for width in (self.dim, self.tokens * self.dim // self.slices)]
        if self.experts and any(width % self.experts for width in hidden):
            raise ValueError(f"experts must divide the hidden widths, {hidden[0]} and {hidden[1]}")
        return self


Architecture = Annotated[Dlrm | Dcnv2 | RankMixer, Field(discriminator="name")]


class RankerConfig(Settings):
    """What rebuilds the module.

    Attributes:
        hash: the function of its tokens, as features/spec.json names it.
        tables: by name; the features of each are those of the item (`caption`), the user (`user`), or the same of the
            user's last items (`history_caption`); see also `long`.
        dense: names of the dense features, in order.
        content_dim: width of the vectors that the ranker reads of an item; 0 where it reads none.
        decoded_dim: of it what the semantic ID decodes to, behind the item's embedding, if that is read.
        history: items of the history that target attention weighs one by one; 0 pools the history as one bag.
        long: items of a second history, which is pooled as the first one is (`long_caption`); 0: there is none.
    """

    hash: dict[str, str | int] = Field(default_factory=dict)
    tables: dict[str, Table]
    dense: tuple[str, ...] = ()
    content_dim: int = 0
    decoded_dim: int = 0
    history: int = 0
    long: int = 0
    embedding_dim: int = 16
    table_dtype: TableDtype = "fp32"
    architecture: Architecture = Dlrm()
    dropout: float = 0.0

    @property
    def past(self) -> tuple[str, ...]:
        """Tables that look into the user's history, too."""
        names = {feature for table in self.tables.values() for feature in table.features}
        return tuple(name for name in self.tables if HISTORY + name in names)

    @property
    def histories(self) -> dict[str, int]:
        """Kinds of histories that these tables look into, with the number of items that attention weighs."""
        return {HISTORY: self.history} | ({LONG: self.long} if self.long else {})

    @model_validator(mode="after")
    def _something_to_attend_to(self) -> RankerConfig:
        if not self.tables:
            raise ValueError("a ranker needs at least one table")
        if self.history and not self.past:
            raise ValueError("target attention needs a table with a history feature")
        return self
