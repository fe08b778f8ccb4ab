"""RankMixer (Zhu et al. 2025, arXiv 2507.15551) with the changes of TokenMixer-Large (arXiv 2602.06563) as options.

Fields become T tokens. A block mixes them without a parameter, by trading slices between tokens, and then passes every
token through a feed-forward network of its own. Tokens stand in front, [T, B, D], so that one batched product serves
all of them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torchrec.modules.mlp import MLP

from models.ranking.config import RankMixer


def mix(tokens: torch.Tensor, parts: int) -> torch.Tensor:
    """Cuts tokens [T, B, D] into `parts` slices each, and join the same slice of all tokens: [parts, B, T * D / parts].

    To revert it, mix the result into T parts.
    """
    return tokens.unflatten(2, (parts, -1)).permute(2, 1, 0, 3).flatten(2)


class TokenLinear(nn.Module):
    """A linear layer of its own for every token, whose weights start as `scale` times those of nn.Linear."""

    def __init__(self, tokens: int, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        bound = scale * inputs**-0.5
        self.weight = nn.Parameter(torch.empty(tokens, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(tokens, 1, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [T, B, inputs] to [T, B, outputs]."""
        return torch.baddbmm(self.bias, x, self.weight)


class SwiGLU(nn.Module):
    """Per-token SwiGLU; with experts, α Σ softmax(g)_j Expert_j(x) + Shared(x) over the best `active` of E experts j.

    α = E / active. The softmax is over all experts, so that the router learns where a single one is active, too.
    Experts are slices of the hidden layer, and the shared one is a slice more. All are computed, and those that are not
    active count as 0: this is the model, without what it saves where rows are sorted by their experts.
    """

    def __init__(self, tokens: int, width: int, hidden: int, *, experts: int, active: int) -> None:
        super().__init__()
        self.experts, self.active = experts, active
        hidden += hidden // experts if experts else 0
        self.gate, self.up = TokenLinear(tokens, width, hidden), TokenLinear(tokens, width, hidden)
        self.down = TokenLinear(tokens, hidden, width, scale=0.01)  # blocks start near the identity
        self.router = TokenLinear(tokens, width, experts) if experts else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [T, B, width] to [T, B, width]."""
        hidden = functional.silu(self.gate(x)) * self.up(x)
        if self.router is not None:
            share = self.router(x).softmax(2)
            best = share.topk(self.active, dim=2)
            routed = torch.zeros_like(share).scatter(2, best.indices, best.values * (self.experts / self.active))
            weights = functional.pad(routed, (0, 1), value=1.0)
            hidden = (hidden.unflatten(2, (self.experts + 1, -1)) * weights.unsqueeze(3)).flatten(2)
        return self.down(hidden)


class RankMixerBlock(nn.Module):
    """S = LN(Mix(X) + X), X' = LN(PFFN(S) + S)."""

    def __init__(self, config: RankMixer) -> None:
        super().__init__()
        self.tokens, hidden = config.tokens, config.expansion * config.dim
        self.network = nn.Sequential(
            TokenLinear(config.tokens, config.dim, hidden), nn.GELU(), TokenLinear(config.tokens, hidden, config.dim)
        )
        self.mixed_norm, self.norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [T, B, D] to [T, B, D]."""
        mixed = self.mixed_norm(mix(x, self.tokens) + x)
        return self.norm(self.network(mixed) + mixed)


class LargeBlock(nn.Module):
    """H = Mix(X), H' = H + pSwiGLU(RMS(H)), X' = X + pSwiGLU(RMS(Revert(H')))."""

    def __init__(self, config: RankMixer) -> None:
        super().__init__()
        self.tokens, self.slices = config.tokens, config.slices
        mixed = config.tokens * config.dim // config.slices
        self.mixed_norm, self.norm = nn.RMSNorm(mixed), nn.RMSNorm(config.dim)
        experts = {"experts": config.experts, "active": config.active}
        self.mixed_network = SwiGLU(config.slices, mixed, config.expansion * mixed, **experts)
        self.network = SwiGLU(config.tokens, config.dim, config.expansion * config.dim, **experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [T, B, D] to [T, B, D]."""
        mixed = mix(x, self.slices)
        mixed = mixed + self.mixed_network(self.mixed_norm(mixed))
        return x + self.network(self.norm(mix(mixed, self.tokens)))


class Tokenizer(nn.Module):
    """From one vector per row [B, width] to tokens [T, B, D].

    The vector is cut into equal slices (the last is filled up with zeros), and each becomes a token by a projection of
    its own. With block large that is an MLP, and the first token is an MLP of the whole vector.
    """

    def __init__(self, config: RankMixer, width: int) -> None:
        super().__init__()
        large = config.block == "large"
        self.slices = config.tokens - large
        self.length = -(-width // self.slices)
        self.fill = self.slices * self.length - width
        layers: list[nn.Module] = [TokenLinear(self.slices, self.length, config.dim)]
        if large:
            layers += [nn.GELU(), TokenLinear(self.slices, config.dim, config.dim)]
        self.project = nn.Sequential(*layers)
        sizes = [config.dim, config.dim]
        self.whole = MLP(width, sizes, activation=nn.GELU, activation_on_last=False) if large else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens float32 [T, B, D], whatever the precision of the products: blocks add to them."""
        slices = functional.pad(x, (0, self.fill)).unflatten(1, (self.slices, self.length))
        tokens = self.project(slices.transpose(0, 1))
        return (tokens if self.whole is None else torch.cat([self.whole(x).unsqueeze(0), tokens])).float()


class Tower(nn.Module):
    """From fields and dense features to a logit: tokens, blocks, their mean, one linear layer."""

    def __init__(self, config: RankMixer, *, fields: int, dim: int, dense: int) -> None:
        super().__init__()
        block = RankMixerBlock if config.block == "rankmixer" else LargeBlock
        self.config = config
        self.tokenizer = Tokenizer(config, fields * dim + dense)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.layers))
        heads = 1 + (len(config.residuals) if config.auxiliary else 0)
        self.heads = nn.ModuleList(nn.Linear(config.dim, 1, bias=False) for _ in range(heads))

    def forward(self, fields: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Logits float32 [1 + A, B], without constants, of fields [B, F, D] and standardised dense features [B, n].

        Only while training, auxiliary logits of inner blocks stand below the answer, from the first block on.
        """
        states = [self.tokenizer(torch.cat([fields.flatten(1), dense], dim=1))]
        for number, block in enumerate(self.blocks, start=1):
            state = block(states[-1])
            if number in self.config.residuals:
                state = state + states[number - self.config.inter_residual]
            states.append(state)
        ends = [states[-1]]
        if self.config.auxiliary and self.training:
            ends += [states[number] for number in self.config.residuals]
        return torch.cat([head(end.mean(0)) for head, end in zip(self.heads, ends, strict=False)], dim=1).float().t()
