from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import gelu, layer_norm, rms_norm, silu

from models.ranking.config import RankMixer
from models.ranking.rankmixer import LargeBlock, RankMixerBlock, SwiGLU, TokenLinear, Tower, mix

DEEP = RankMixer(block="large", tokens=3, dim=8, heads=2, layers=5, inter_residual=2, auxiliary=True)


def noisy(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Biases start at 0 and the way down near it: move all, so that no term goes unnoticed."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.5)
    return module


def inputs(rows: int, fields: int = 3, dim: int = 4, dense: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(rows, fields, dim, generator=random), torch.randn(rows, dense, generator=random)


def tower(config: RankMixer) -> Tower:
    torch.manual_seed(0)
    return Tower(config, fields=3, dim=4, dense=2)


def token(layer: TokenLinear, number: int, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight[number] + layer.bias[number]


sizes = st.integers(1, 6)


@given(tokens=sizes, parts=sizes, width=sizes, rows=st.integers(0, 3))
def test_mixing_back_reverts_for_any_numbers_of_tokens_and_slices(tokens, parts, width, rows) -> None:
    x = torch.arange(tokens * rows * parts * width).reshape(tokens, rows, parts * width)
    mixed = mix(x, parts)
    assert mixed.shape == (parts, rows, tokens * width)
    assert torch.equal(mix(mixed, tokens), x)
    for part in range(parts):
        assert torch.equal(
            mixed[part], torch.cat([x[t, :, part * width : (part + 1) * width] for t in range(tokens)], 1)
        )


def test_a_rankmixer_block_is_its_formula_token_by_token() -> None:
    block = noisy(RankMixerBlock(RankMixer(tokens=4, dim=8)))
    x = torch.randn(4, 5, 8)
    rise, _, fall = block.network
    first, second = ((norm.weight, norm.bias) for norm in (block.mixed_norm, block.norm))
    for t in range(4):
        slices = torch.cat([x[other, :, 2 * t : 2 * t + 2] for other in range(4)], dim=1)
        s = layer_norm(slices + x[t], (8,), *first)
        expected = layer_norm(token(fall, t, gelu(token(rise, t, s))) + s, (8,), *second)
        torch.testing.assert_close(block(x)[t], expected)


def test_a_large_block_is_its_formula_token_by_token() -> None:
    block = noisy(LargeBlock(RankMixer(block="large", tokens=3, dim=8, heads=2)))
    x = torch.randn(3, 5, 8)

    def network(part: SwiGLU, number: int, v: torch.Tensor) -> torch.Tensor:
        return token(part.down, number, silu(token(part.gate, number, v)) * token(part.up, number, v))

    heads = []
    for h in range(2):
        mixed = torch.cat([x[t, :, 4 * h : 4 * h + 4] for t in range(3)], dim=1)
        heads.append(mixed + network(block.mixed_network, h, rms_norm(mixed, (12,), block.mixed_norm.weight)))
    for t in range(3):
        reverted = torch.cat([head[:, 4 * t : 4 * t + 4] for head in heads], dim=1)
        expected = x[t] + network(block.network, t, rms_norm(reverted, (8,), block.norm.weight))
        torch.testing.assert_close(block(x)[t], expected)


def test_a_large_block_starts_near_the_identity() -> None:
    x = torch.randn(4, 100, 16)
    assert (LargeBlock(RankMixer(block="large", tokens=4, dim=16))(x) - x).abs().max() < 0.05


@pytest.mark.parametrize("active", [1, 2])
def test_experts_are_their_formula_row_by_row(active: int) -> None:
    tokens, width, experts, part = 3, 4, 4, 2
    network = noisy(SwiGLU(tokens, width, experts * part, experts=experts, active=active))
    x = torch.randn(tokens, 20, width)
    out = network(x)
    for t in range(tokens):
        for row in range(20):
            share = token(network.router, t, x[t, row : row + 1])[0].softmax(0)
            weights = {experts: 1.0}  # the shared one
            for j in share.argsort(descending=True)[:active].tolist():
                weights[j] = experts / active * share[j]
            hidden = silu(token(network.gate, t, x[t, row : row + 1])) * token(network.up, t, x[t, row : row + 1])
            expected = network.down.bias[t, 0] + sum(
                weight * hidden[0, part * j : part * (j + 1)] @ network.down.weight[t, part * j : part * (j + 1)]
                for j, weight in weights.items()
            )
            torch.testing.assert_close(out[t, row], expected)


def test_all_experts_would_count_as_much_as_one_network_would() -> None:
    """α makes up for the softmax: with an undecided router the active experts' weights have the sum 1."""
    network = SwiGLU(2, 4, 8, experts=4, active=2)
    with torch.no_grad():
        network.router.weight.zero_()
        network.down.weight.fill_(1.0)
        for layer in (network.gate, network.up):
            layer.weight.zero_()
            layer.bias.fill_(1.0)
    torch.testing.assert_close(
        network(torch.randn(2, 3, 4)), torch.full((2, 3, 4), 2 * 2 * float(silu(torch.ones(()))))
    )


def test_residuals_skip_blocks_and_spare_the_last() -> None:
    model, (fields, dense) = tower(DEEP).eval(), inputs(6)
    states = [model.tokenizer(torch.cat([fields.flatten(1), dense], dim=1))]
    for number, block in enumerate(model.blocks, start=1):
        state = block(states[-1])
        states.append(state + states[number - 2] if number in (2, 4) else state)
    torch.testing.assert_close(model(fields, dense), model.heads[0](states[5].mean(0)).t())


def test_auxiliary_logits_are_for_training_alone() -> None:
    model = tower(DEEP)
    trained, asked = model(*inputs(6)), model.eval()(*inputs(6))
    assert (trained.shape, asked.shape) == ((3, 6), (1, 6))
    torch.testing.assert_close(trained[:1], asked)
    assert not torch.allclose(trained[1], trained[2])


@pytest.mark.parametrize("layers", [3, 4])
def test_a_residual_into_the_last_block_alone_is_refused_and_before_it_is_not(layers: int) -> None:
    config = RankMixer(layers=layers, inter_residual=layers - 1)
    assert list(config.residuals) == [layers - 1]
    with pytest.raises(ValidationError, match="the last block takes no residual"):
        RankMixer(layers=layers, inter_residual=layers)


@pytest.mark.parametrize("block", ["rankmixer", "large"])
@pytest.mark.parametrize("tokens", [2, 4, 8])
def test_every_input_reaches_some_token(block: str, tokens: int) -> None:
    model = noisy(tower(RankMixer(block=block, tokens=tokens, dim=8, layers=1)))
    flat = torch.randn(14, requires_grad=True)
    model.tokenizer(flat.unsqueeze(0))[-tokens + (block == "large") :].square().sum().backward()
    assert flat.grad.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 6}, "dim must be a multiple of tokens, 6"),
        ({"block": "large", "heads": 5}, "dim must be a multiple of heads, 5"),
        ({"heads": 4}, "heads and experts are for block large"),
        ({"experts": 4, "active": 2}, "heads and experts are for block large"),
        ({"block": "large", "tokens": 1}, "set tokens to 2 or more"),
        ({"inter_residual": 1}, "set it to 2 or more"),
        ({"inter_residual": 2}, "inter_residual must be below layers, 2"),
        ({"layers": 4, "auxiliary": True}, "set inter_residual"),
        ({"block": "large", "experts": 4}, "experts and active go together"),
        ({"block": "large", "active": 2}, "experts and active go together"),
        ({"block": "large", "experts": 4, "active": 4}, "experts above it"),
        ({"block": "large", "experts": 3, "active": 1}, "experts must divide the hidden widths, 128 and 128"),
        ({"block": "large", "tokens": 4, "heads": 16, "experts": 64, "active": 1}, "hidden widths, 128 and 32"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RankMixer(**settings)
