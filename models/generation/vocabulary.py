"""The tokens of a generator: text, and the codes of semantic IDs behind it.

Semantic IDs are numbers here and never text: the tokenizer does not know their tokens, and it takes the spellings of
its own special tokens for plain characters. So no text of a catalogue can name an item or end a document.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from models.common.jagged import Jagged
from models.semantic_ids.suffixes import NO_SUFFIX, sid_string
from storage import files
from storage.artifacts import rebuilding
from storage.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<end>"  # spelling of code 0 at the level of the suffixes: none
_SPECIAL, _IDS = ("<pad>", "<bos>", "<eos>"), (0, 1, 2)  # where the tokenizer is our own
_TOKENIZER, _NUMBERS = "tokenizer.json", "vocabulary.json"


def sid_codes(codes: np.ndarray, codebook_sizes: Sequence[int] | None = None) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns semantic IDs as codes of one length, none of which is the beginning of another's.

    Where any item has a deduplication suffix, it becomes one more code: 1 + suffix, or 0 for none. Where none has one,
    that level is left out.

    >>> sid_codes(np.array([[3, 1, -1], [3, 2, 0], [3, 2, 1]]))
    (array([[3, 1, 0],
           [3, 2, 1],
           [3, 2, 2]]), (4, 3, 3))

    Args:
        codes: integers [N, L + 1], N at least 1: codes, then the suffix, -1 for none.
        codebook_sizes: codes of each of the L levels; as many as are in use where it is None.

    Returns:
        int64 [N, L'], L' being L or L + 1, and the number of codes of each of their levels.
    """
    suffixes = bool((codes[:, -1] != NO_SUFFIX).any())
    found = codes.astype(np.int64) if suffixes else codes[:, :-1].astype(np.int64)
    if suffixes:
        found[:, -1] -= NO_SUFFIX
    used = tuple(int(highest) + 1 for highest in found.max(axis=0))
    if codebook_sizes is None:
        return found, used
    return found, (*codebook_sizes, *used[len(codebook_sizes) :])


@dataclass(frozen=True)
class Vocabulary:
    """Ids of tokens: text from 0, then the codes of level 0, of level 1, …

    A softmax is over the tokens of one group: those of one level, or the text's, which are all below `sid_start`.

    Attributes:
        sizes: codes of each level.
        text: tokenizer; None where there are semantic IDs alone.
        sid_start: id of code 0 of level 0.
        pad, bos, eos: fill a row, open a document, end a text.
        suffixes: whether the last level is that of the deduplication suffixes, see `sid_codes`.
    """

    sizes: tuple[int, ...]
    text: Tokenizer | None
    sid_start: int
    pad: int
    bos: int
    eos: int
    suffixes: bool = False
    _phrases: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def sequence_only(cls, sizes: Sequence[int], *, suffixes: bool = False) -> Vocabulary:
        """Semantic IDs alone."""
        return cls(tuple(sizes), None, len(_SPECIAL), *_IDS, suffixes)

    @classmethod
    def trained(
        cls, sizes: Sequence[int], texts: Iterable[str], vocab_size: int, *, suffixes: bool = False
    ) -> Vocabulary:
        """With a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of the texts.

        Args:
            texts: titles, captions, prompts; their order does not matter.
            vocab_size: text tokens in all, bytes and special ones (259) included.
        """
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tuple(sizes), tokenizer, tokenizer.get_vocab_size(), *_IDS, suffixes)

    @classmethod
    def extended(
        cls, sizes: Sequence[int], tokenizer: PreTrainedTokenizerBase, rows: int, *, suffixes: bool = False
    ) -> Vocabulary:
        """With the tokenizer of a pretrained model.

        Args:
            rows: of the model's embedding matrix, padded or not: semantic IDs lie behind them.

        Raises:
            UserError: the tokenizer has no end of text, more tokens than there are rows, or is of the slow kind.
        """
        text, eos = getattr(tokenizer, "backend_tokenizer", None), tokenizer.eos_token_id
        if not isinstance(text, Tokenizer) or eos is None:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path} cannot be used: choose a model with a tokenizer.json that "
                "names an end-of-text token."
            )
        text = Tokenizer.from_str(text.to_str())
        text.no_padding()
        text.no_truncation()
        if text.get_vocab_size() > rows:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path} has {text.get_vocab_size():,} tokens and its model rows "
                f"for {rows:,}: choose a model and a tokenizer that belong together."
            )
        pad, bos = (eos if found is None else found for found in (tokenizer.pad_token_id, tokenizer.bos_token_id))
        return cls(tuple(sizes), text, rows, pad, bos, eos, suffixes=suffixes)

    @property
    def size(self) -> int:
        """Tokens in all."""
        return self.start(len(self.sizes))

    def start(self, level: int) -> int:
        """Returns the id of code 0 of a level."""
        return self.sid_start + sum(self.sizes[:level])

    def sid_tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the tokens of semantic IDs, or of their beginnings, int64 [..., up to L']."""
        starts = [self.start(level) for level in range(codes.shape[-1])]
        return codes + torch.tensor(starts, device=codes.device)

    def encode(self, texts: Sequence[str], *, max_tokens: int | None = None) -> Jagged:
        """The tokens of every text, or the first `max_tokens` of them; whatever a text says, they are plain ones.

        Raises:
            UserError: there are semantic IDs alone.
        """
        if self.text is None:
            raise UserError("A generator of semantic IDs alone reads no text: name no tasks, or give it text tokens.")
        self.text.encode_special_tokens = True  # as plain characters; a tokenizer that was read or copied forgets this
        found = [part.ids[:max_tokens] for part in self.text.encode_batch_fast(list(texts), add_special_tokens=False)]
        offsets = torch.tensor([0, *map(len, found)]).cumsum(0)
        return Jagged(torch.tensor(list(itertools.chain.from_iterable(found)), dtype=torch.int64), offsets)

    def phrase(self, text: str) -> torch.Tensor:
        """The tokens of a text of prompts, int64 [T], not to be written to; it is encoded once.

        Raises:
            UserError: there are semantic IDs alone.
        """
        if text not in self._phrases:
            self._phrases[text] = self.encode([text]).values
        return self._phrases[text]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text as it reads, semantic IDs as `sid_string` spells them; special tokens are left out."""
        parts: list[str] = []
        for is_text, ids in itertools.groupby(map(int, tokens), lambda token: token < self.sid_start):
            if not is_text:
                parts += map(self._spell, ids)
            elif self.text is not None:
                parts.append(self.text.decode(list(ids), skip_special_tokens=True))
        return "".join(parts)

    def _spell(self, token: int) -> str:
        level = max(level for level in range(len(self.sizes)) if self.start(level) <= token)
        code = token - self.start(level)
        if self.suffixes and level == len(self.sizes) - 1:
            code += NO_SUFFIX
        return END if code == NO_SUFFIX else sid_string([*[NO_SUFFIX] * level, code])

    def save(self, uri: str) -> None:
        """Writes the vocabulary into a folder, as `vocabulary.json` and, with text, `tokenizer.json`."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("text", "_phrases")}
        files.write_json(files.join(uri, _NUMBERS), {**numbers, "text": self.text is not None})
        if self.text is not None:
            files.write_bytes(files.join(uri, _TOKENIZER), self.text.to_str(pretty=True).encode())

    @classmethod
    def load(cls, uri: str) -> Vocabulary:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: there is none in the folder, or it is damaged.
        """
        with rebuilding(uri, "vocabulary"):
            numbers = files.read_json(files.join(uri, _NUMBERS))
            text = Tokenizer.from_buffer(files.read_bytes(files.join(uri, _TOKENIZER))) if numbers["text"] else None
            return cls(**{**numbers, "sizes": tuple(numbers["sizes"]), "text": text})
