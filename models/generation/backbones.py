"""Decoders that speak a vocabulary of text and semantic IDs: a small one from scratch, or any of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch.nn import functional

from models.chat.huggingface import first_line, read_config, read_model, reading
from models.chat.smollm2 import smollm2_path
from models.common.llama import Tiny, tiny_llama
from models.common.seeds import generator, seed_of
from models.common.settings import ModelName, Settings
from models.generation.vocabulary import Vocabulary
from storage.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS, ROWS, ADAPTERS = 401, 402, 403  # what is drawn, for seeds
# A new row is the mean of so many rows of text, drawn with replacement: all rows' mean, and their covariance over that
# number. With 64, SmolLM2 begins 0.09 above the log of a level's size; with 16, 0.36 above.
DRAWN_ROWS = 64
ADAPTER = "default"  # peft's name for the only one


class Lora(Settings):
    """Settings of low-rank adapters (Hu et al. 2021) on all projections of attention and networks.

    The rows of semantic IDs are trained beside them in full; all other weights stay as they are.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.05, ge=0, lt=1)


class _Weights(Settings):
    """Settings of what was trained before.

    Attributes:
        lora: adapters to train in its place; null: train all of it.
    """

    lora: Lora | None = None


class SmolLM2(_Weights):
    """Settings of the packaged SmolLM2-135M-Instruct."""

    name: Literal["smollm2"]


class Pretrained(_Weights):
    """Settings of any causal language model of transformers that passes `check`.

    Attributes:
        model: a folder, or a name on the Hugging Face hub; weights come from safetensors alone, and no code that a
            model brings along is run.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; what is trained should be float32, and bfloat16 halves what LoRA leaves as it is.
    """

    name: Literal["pretrained"]
    model: ModelName
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _trained_in_float32(self) -> Pretrained:
        if self.dtype != "float32" and self.lora is None:
            raise ValueError("small steps are lost in bfloat16 weights: set dtype to float32, or set lora")
        return self


Backbone = Annotated[Tiny | SmolLM2 | Pretrained, Field(discriminator="name")]


def load_tokenizer(settings: SmolLM2 | Pretrained) -> tuple[PreTrainedTokenizerBase, int]:
    """A model's tokenizer and the rows of its embeddings, which may be more than the tokenizer's tokens.

    Raises:
        UserError: there is no such model, or it has no tokenizer.
    """
    from transformers import AutoTokenizer

    name, where, config = _located(settings)
    with reading(f"{name}'s tokenizer"):
        return AutoTokenizer.from_pretrained(name, **where), config.get_text_config().vocab_size


def build(settings: Tiny | SmolLM2 | Pretrained, vocabulary: Vocabulary, *, seed: int = 0) -> PreTrainedModel:
    """A decoder with one row of embeddings per token of the vocabulary, in training mode on the CPU.

    Args:
        seed: of all weights that are new; torch's own generator is left alone.

    Raises:
        UserError: there is no such model, or it cannot be used here: see `check`.
    """
    return adapted(plain(settings, vocabulary, seed=seed), settings, vocabulary, seed=seed)


def plain(settings: Tiny | SmolLM2 | Pretrained, vocabulary: Vocabulary, *, seed: int = 0) -> PreTrainedModel:
    """What `build` returns, before there are adapters."""
    return _tiny(settings, vocabulary, seed) if isinstance(settings, Tiny) else _extended(settings, vocabulary, seed)


def adapted(
    model: PreTrainedModel, settings: Tiny | SmolLM2 | Pretrained, vocabulary: Vocabulary, *, seed: int = 0
) -> PreTrainedModel:
    """Returns the model of `plain` with adapters, where the settings have them, in training mode."""
    lora = None if isinstance(settings, Tiny) else settings.lora
    return (model if lora is None else adapt(model, lora, vocabulary, seed=seed)).train()


def _tiny(settings: Tiny, vocabulary: Vocabulary, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(WEIGHTS, seed))
        model: PreTrainedModel = tiny_llama(
            settings, vocabulary.size, pad=vocabulary.pad, bos=vocabulary.bos, eos=vocabulary.eos
        )
    return model


def _located(settings: SmolLM2 | Pretrained) -> tuple[str, dict[str, Any], PreTrainedConfig]:
    """Returns a folder or name, how transformers is to read it, and its configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    chosen = (settings.model, settings.revision) if isinstance(settings, Pretrained) else (smollm2_path(), None)
    name, where = chosen[0], {"revision": chosen[1], "trust_remote_code": False}
    config = read_config(name, where)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{name} ({config.model_type}) is no causal language model: choose one.")
    return name, where, config


def _extended(settings: SmolLM2 | Pretrained, vocabulary: Vocabulary, seed: int) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    name, where, config = _located(settings)
    dtype = settings.dtype if isinstance(settings, Pretrained) else "float32"
    try:
        options = {"config": config, "dtype": dtype, "attn_implementation": "sdpa"}
        model = read_model(AutoModelForCausalLM, name, **options, **where)
    except ValueError as error:
        raise UserError(f"{name} ({config.model_type}) has no attention through sdpa: choose another model.") from error
    extend(model, vocabulary, seed=seed)
    check(model, name)
    return model


@torch.no_grad()
def extend(model: PreTrainedModel, vocabulary: Vocabulary, *, seed: int = 0) -> None:
    """Gives a model the vocabulary's rows; those of semantic IDs are drawn about the mean of those of text.

    About the mean, new rows take next to nothing from the probability of what is known (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"), and all codes of a level begin alike.
    """
    text, new = vocabulary.sid_start, vocabulary.size - vocabulary.sid_start
    before: list[Any] = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    known = len(before[0]) if vocabulary.text is None else vocabulary.text.get_vocab_size()
    drawn = torch.randint(known, (new, DRAWN_ROWS), generator=generator(ROWS, seed))
    rows = [functional.embedding_bag(drawn, part.float(), mode="mean") for part in before]
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    for part, values in zip((model.get_input_embeddings(), model.get_output_embeddings()), rows, strict=True):
        part.weight[text:] = values.to(part.weight.dtype)


@torch.no_grad()
def check(model: PreTrainedModel, name: str) -> None:
    """Tries a model on two documents in one row.

    Raises:
        UserError: a document sees another through the mask, or logits are more than hidden states times a matrix.
    """
    model.eval()
    tokens, positions = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    document = torch.tensor([1, 1, 1, 2, 2, 2])
    mask = (document[:, None] == document).tril()[None, None]
    try:
        both = model(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False).logits.float()
        alone = model(input_ids=tokens[:, 3:], use_cache=False).logits.float()
        hidden = model.base_model(input_ids=tokens[:, 3:], use_cache=False).last_hidden_state
        plain = functional.linear(hidden, model.get_output_embeddings().weight).float()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        reason = first_line(error)
        raise UserError(f"{name} takes no mask over packed documents, choose another model: {reason}") from error
    near = 1e-3 if model.dtype == torch.float32 else 0.1
    if not torch.allclose(both[:, 3:], alone, rtol=near, atol=near):
        raise UserError(f"{name} ({model.config.model_type}) mixes packed documents: choose a model that does not.")
    if not torch.allclose(plain, alone, rtol=near, atol=near):
        raise UserError(f"{name} ({model.config.model_type}) has no plain output matrix: choose a model that has.")


def adapt(model: PreTrainedModel, settings: Lora, vocabulary: Vocabulary, *, seed: int = 0) -> PreTrainedModel:
    """Freezes a model but for low-rank adapters and for the rows of semantic IDs; in place.

    peft trains the rows as a matrix of their own and shares them where the embeddings are tied. A model's
    `modules_to_save` would train the rows of text as well.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    rows = list(range(vocabulary.sid_start, vocabulary.size))
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, part in model.named_modules() if part in embeddings]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",  # peft leaves out the output matrix
        trainable_token_indices=dict.fromkeys(names, rows),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(ADAPTERS, seed))
        inject_adapter_in_model(config, model, ADAPTER)
    cast_adapter_dtype(model, ADAPTER)  # small steps are lost in bfloat16
    return model


@torch.no_grad()
def merged(state: dict[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns the tensors of the plain model in place of those with adapters; tied ones once.

    Args:
        state: whole tensors by their names in `model.state_dict()`; may be overwritten.
        model: whose tensors they are.
    """
    adapted = {f"{name}.": part for name, part in model.named_modules() if hasattr(part, "lora_A")}
    plain: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        stem, wrapped, rest = name.partition("base_layer.")
        rows = state.get(f"{stem}trainable_tokens_delta.{ADAPTER}")
        if wrapped and rows is not None:
            value = torch.cat([value[: -len(rows)], rows.to(value)])
        elif wrapped and rest == "weight":
            up, down = (state[f"{stem}lora_{part}.{ADAPTER}.weight"].float() for part in "BA")
            step = adapted[stem].scaling[ADAPTER] * up @ down
            value = (value.float() + (step.T if adapted[stem].fan_in_fan_out else step)).to(value.dtype)
        if "lora_" not in name and "trainable_tokens" not in name:
            plain[stem.removesuffix("token_adapter.") + rest] = value
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    return {name: value for name, value in plain.items() if name not in tied}
