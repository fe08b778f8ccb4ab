"""Tags without a language model: the keywords of an item's texts by YAKE (Campos et al. 2020)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from models.chat.base import Failure
from models.common.settings import Backend
from models.interests.mining import MOST_TAGS, PEOPLE, ItemText, Tags, bounded, clean_tag

if TYPE_CHECKING:
    from yake import KeywordExtractor

CANDIDATES = 500  # all of a text's
MOST_KEYWORD_WORDS = 2
READ = 400  # characters of title, caption and description together; the time goes with them
# What captions say of the picture and not of the item: among them the tagger's words for outline, tone and surface.
_OF_PICTURES = re.compile(
    r"\bon an? [\w-]+ background\b|"
    r"\b(?:picture|image|photo|photograph|background|foreground|shown|mainly|something|shape|texture|even|tall|wide|"
    r"blocky|rounded|tapered|spindly|plain|busy|dark|light|medium|vivid|muted|soft|glossy|grainy|smooth)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Keywords(Backend):
    """The default miner: keywords of one or two words, no two of them sharing a word.

    YAKE scores words by position, case, frequency and neighbours inside one text, so it needs neither a model nor other
    items. Words that it passes over fill up what it leaves open, in the order of the text.
    """

    version: ClassVar[int] = 2
    backend = "keywords"

    def load(self) -> None:
        """Reads the stop words."""
        _extractor()

    def mine(self, texts: Sequence[ItemText]) -> list[Tags | Failure]:
        """Mines at most four keywords of each item; fewer where the texts have fewer words."""
        return [{"keyword": _keywords(bounded(text))} for text in texts]


@functools.cache
def _extractor() -> KeywordExtractor:
    from yake import KeywordExtractor

    # Its own deduplication is off: ours, by words, leaves it nothing to do.
    extractor = KeywordExtractor(lan="en", n=MOST_KEYWORD_WORDS, window_size=1, dedup_lim=1.0, top=CANDIDATES)
    extractor.stopword_set |= PEOPLE
    return extractor


def _keywords(text: ItemText) -> list[str]:
    caption = _OF_PICTURES.sub(",", text.caption or "")
    whole = ". ".join(part for part in (text.title, caption, text.description) if part)[:READ]
    tags: list[str] = []
    used: set[str] = set()
    for tag in _candidates(whole):
        words = [word.rstrip("s") for word in tag.split()]
        if len(used.union(words)) == len(used) + len(words):
            tags.append(tag)
            used.update(words)
        if len(tags) == MOST_TAGS:
            break
    return tags


def _candidates(text: str) -> Iterator[str]:
    extractor = _extractor()
    lower = text.lower()
    # YAKE walks through sets, so equal scores come in another order in every process.
    ranked = sorted((round(score, 9), lower.find(phrase), phrase) for phrase, score in extractor.extract_keywords(text))
    for _, _, phrase in ranked:
        if (tag := clean_tag(phrase)) and len(tag.split()) <= MOST_KEYWORD_WORDS:  # an accent may part in two
            yield tag
    for word in lower.split():
        if (tag := clean_tag(word)) and tag not in extractor.stopword_set:
            yield tag
