"""Mine what an item offers to an interest: a few short tags out of its texts (MDIM, arXiv 2605.05249).

A tag is lower-case, of one to four words, and says nothing of who buys. There are two kinds. An intent is a latent need
or way of life that an item serves, such as "distraction-free commuting"; its words need not stand in the texts. A
keyword stands in the texts.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from models.chat.base import Chat, Failure, Prompt

FEWEST_TAGS, MOST_TAGS, MOST_WORDS, MOST_CHARACTERS = 2, 4, 4, 40
LONGEST = {"title": 300, "description": 1_500, "caption": 1_000}  # characters of each text that are read
ANSWER_END = 4_000  # characters of an answer that are searched; the list comes last

# Words for the people who buy, by age, gender, origin or income. They leave a tag: "men's shirts" are shirts.
_PEOPLE = (
    "men man mens women woman womens male males female females boy boys girl girls kid kids child children childrens "
    "baby babies infant infants toddler toddlers teen teens teenager teenagers adult adults senior seniors elderly "
    "lady ladies gent gents gentleman gentlemen guy guys unisex gender masculine feminine mother mothers mom moms "
    "father fathers dad dads parent parents young millennial millennials person persons people buyer buyers "
    "customer customers consumer consumers shopper shoppers income wealthy affluent poor ethnicity caucasian "
    "hispanic latino asian african his her him hers"
)
PEOPLE = frozenset(_PEOPLE.split())
_FUNCTION_WORDS = "a an the and or of for with in on at to by from as is are your my this that"
_EDGES = frozenset(_FUNCTION_WORDS.split())

Kind = Literal["intent", "keyword"]
Tags = dict[Kind, list[str]]  # the strongest first

SYSTEM = "You describe what items offer to the people who choose them."
WANTED: dict[Kind, str] = {
    "intent": "2 to 4 latent intents or lifestyles that the item serves, each of 2 to 4 words: needs, occasions and "
    "ways of life for which it is chosen. They need not be words of the text",
    "keyword": "2 to 4 keywords in words of the text, each of 1 to 3 words: what it is, what it is for, its style, its "
    "material",
}
# Small models fail at JSON more often than at lists, repeat complaints they find beside the text, and answer with the
# tags of worked examples where there are any.
LISTED = "The last line is a JSON list of strings and nothing else."
LISTED_SIMPLY = "Write them as a list, one per line."
KEYED = "The last line is a JSON object with the keys {keys}, each a list of strings, and nothing else."

UNPARSABLE = "unparsable_interests"
_LIST = re.compile(
    r"""(?:["']?(?P<key>interests|tags|intents|keywords)["']?\s*:\s*)?\[(?P<inside>[^\[\]]*)(?P<end>\]|\Z)""", re.I
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.*)$")
_QUOTES = str.maketrans("“”„‘’", '"""\'\'')


class ItemText(NamedTuple):
    """The texts of an item, each of which may be missing."""

    title: str | None = None
    description: str | None = None
    caption: str | None = None


class Miner(Protocol):
    """Finds tags in texts. Implementations are frozen dataclasses whose fields are their settings."""

    def load(self) -> None:
        """Loads weights or open the client; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work.
        """

    def mine(self, texts: Sequence[ItemText]) -> list[Tags | Failure]:
        """Returns the tags of each item by kind; none where its texts hold no word to make one of.

        Raises:
            UserError: no item can be mined under these settings.
        """


@dataclass(frozen=True)
class ChatMiner:
    """Ask a language model for tags; where its answer cannot be used, say what was wrong and ask a simpler question.

    The model reasons before its answer (chain of thought, as in the paper). Its reasoning goes to the log at level
    DEBUG, and nowhere else. The paper's prompt is not published: this one is ours.

    Attributes:
        chat: the language model.
        kinds: the kinds of tags that it is asked for. Those of two kinds are asked for in one answer.
        grounded: the kinds whose tags are dropped where their words are mostly not those of the texts.
        prompt: the question below the texts; empty for the one that follows from `kinds`.
    """

    chat: Chat
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("intent",)
    grounded: tuple[Kind, ...] = ("keyword",)
    prompt: str = ""

    version: ClassVar[int] = 2

    def load(self) -> None:
        """Loads the model; see `Chat.load`."""
        self.chat.load()

    def mine(self, texts: Sequence[ItemText]) -> list[Tags | Failure]:
        """Mines two to four tags of each kind of each item; see `Miner.mine`.

        A kind that an answer lacks is left out, since a short text may hold no two keywords. An item whose second
        answer cannot be used gets the failure `unparsable_interests`; one that the model does not
        answer gets the model's own failure.
        """
        read = [bounded(text) for text in texts]
        found = self._ask(read, self.prompt or question(self.kinds), [SYSTEM] * len(texts))
        again = {
            row: f"{SYSTEM} {tags.detail}"
            for row, tags in enumerate(found)
            if isinstance(tags, Failure) and tags.code == UNPARSABLE
        }
        answers = self._ask([read[row] for row in again], question(self.kinds, simple=True), list(again.values()))
        for row, tags in zip(again, answers, strict=True):
            found[row] = tags
        return found

    def _ask(self, texts: list[ItemText], wanted: str, systems: list[str]) -> list[Tags | Failure]:
        if not texts:
            return []
        evidence = [
            "\n".join(f"{name.capitalize()}: {part}" for name, part in t._asdict().items() if part) for t in texts
        ]
        both = zip(evidence, systems, strict=True)
        answers = self.chat.complete([Prompt(f"{shown}\n\n{wanted}", system) for shown, system in both])
        for answer in answers:
            logging.getLogger(__name__).debug("answer: %s", answer)
        return [
            answer if isinstance(answer, Failure) else self._read(answer, " ".join(filter(None, text)))
            for answer, text in zip(answers, texts, strict=True)
        ]

    def _read(self, answer: str, evidence: str) -> Tags | Failure:
        tags: Tags = {}
        failure = None
        for kind in self.kinds:
            keys = (f"{kind}s",) if len(self.kinds) > 1 else None
            found = parse_tags(answer, evidence if kind in self.grounded else None, keys=keys)
            if isinstance(found, Failure):
                failure = failure or found
            else:
                tags[kind] = [tag for tag in found if not any(tag in earlier for earlier in tags.values())]
        return tags or failure or Failure(UNPARSABLE, "No kind of tags was asked for.")


def question(kinds: Sequence[Kind], *, simple: bool = False) -> str:
    """Returns what a model is asked below the texts: with room to think before the answer or, `simple`, without."""
    wanted = "; and ".join(WANTED[kind] for kind in kinds)
    keys = " and ".join(f'"{kind}s"' for kind in kinds)
    form = KEYED.format(keys=keys) if len(kinds) > 1 else LISTED_SIMPLY if simple else LISTED
    think = "" if simple else "Think first, in a few sentences, about what the item offers. "
    people = "Never name a person's age, gender, ethnicity or income."
    return f"{think}Name {wanted}; the strongest first. {people} {form}"


def bounded(text: ItemText) -> ItemText:
    """Cuts texts to what is read of them, white space as single spaces, so that none can pass for another."""
    return ItemText(*(" ".join((getattr(text, name) or "")[:limit].split()) for name, limit in LONGEST.items()))


def parse_tags(answer: str, evidence: str | None = None, *, keys: Sequence[str] | None = None) -> list[str] | Failure:
    """Reads the tags out of a model's answer, whatever else it wrote.

    The last JSON list counts, or the last under a key such as `interests` or `tags`. Where JSON does not parse (single
    quotes, trailing commas, an end cut off) it is split at its commas. Without a list, bulleted lines count, and last a
    line of nothing but short phrases parted by commas.

    Args:
        answer: the model's answer.
        evidence: where given, a tag whose words are mostly not its own is dropped.
        keys: where given, only a list under one of these keys counts.

    Returns:
        Two to four valid tags, each once; or the failure `unparsable_interests` with what was wrong.
    """
    raw = _listed(answer[-ANSWER_END:].translate(_QUOTES), keys)
    if not raw:
        return Failure(UNPARSABLE, f"The last answer held no list{f' of {keys[0]}' if keys else ''}.")
    tags = list(dict.fromkeys(tag for tag in map(clean_tag, raw) if tag))
    if evidence is not None:
        tags = [tag for tag in tags if _grounded(tag, evidence.lower())]
    if len(tags) < FEWEST_TAGS:
        grounded = " in words of the text" if evidence is not None else ""
        detail = f"The last answer held fewer than {FEWEST_TAGS} short phrases{grounded}."
        return Failure(UNPARSABLE, detail)
    return tags[:MOST_TAGS]


def _listed(answer: str, keys: Sequence[str] | None) -> list[str]:
    lists = list(_LIST.finditer(answer))
    keyed = [match for match in lists if match["key"] and (keys is None or match["key"].lower() in keys)]
    for match in reversed(keyed or ([] if keys else lists)):
        if items := _items(match["inside"], closed=bool(match["end"])):
            return items
    if keys:
        return []
    lines = [line for line in answer.splitlines() if line.strip(" `")]
    bullets = [bullet[1].split(":")[0] for line in lines if (bullet := _BULLET.match(line))]
    if bullets:
        return bullets
    phrases = lines[-1].split(":")[-1].split(",") if lines else []
    return phrases if len(phrases) > 1 and all(map(clean_tag, phrases)) else []


def _items(inside: str, *, closed: bool) -> list[str]:
    try:
        items = json.loads(f"[{inside}]")
    except (ValueError, RecursionError):
        items = re.split(r"[,\n]", inside)
        items = items if closed else items[:-1]  # the last one may be half a word
    return [item for item in items if isinstance(item, str) and item.strip()]


def clean_tag(text: str) -> str:
    """Returns a phrase as a tag, or "" where it cannot be one.

    Lower-case, without quotes and marks around it, without words for people and without articles and the like at its
    ends; then one to four words, at most 40 characters, all of letters, digits, hyphens, apostrophes and ampersands,
    with two letters at least and more letters than digits.
    """
    words = unicodedata.normalize("NFKC", text).translate(_QUOTES).lower().replace("_", " ").split()
    words = [word.strip("\"'`*.,;:!?()[]{}<>#-&") for word in words]
    words = [word for word in words if word and word.removesuffix("'s") not in PEOPLE]
    inner = [place for place, word in enumerate(words) if word not in _EDGES]
    words = words[inner[0] : inner[-1] + 1] if inner else []
    tag = " ".join(words)
    kinds = [unicodedata.category(character)[0] for character in tag if character not in " -'&"]
    letters, digits = kinds.count("L"), kinds.count("N")
    plain = letters + digits + kinds.count("M") == len(kinds)
    short = len(words) <= MOST_WORDS and len(tag) <= MOST_CHARACTERS
    return tag if plain and short and letters >= 2 and letters > digits else ""


def _grounded(tag: str, evidence: str) -> bool:
    """Tells whether more than half of a tag's words begin a word of the evidence; endings may differ."""
    words = [word for word in tag.split() if word not in _EDGES]
    stems = (re.escape(word.rstrip("s")[:6]) for word in words)
    found = sum(bool(re.search(rf"(?<![a-z]){stem}", evidence)) for stem in stems)
    return 2 * found > len(words)
