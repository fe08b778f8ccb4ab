"""From what there is in a catalogue to a definition that fits it: every choice with its reason and its minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workflows.distributed.pools import READER_CPUS, Node
from workflows.init import costs
from workflows.init.findings import Behaviour, Findings, Parts

BUDGET = 45 * 60.0  # seconds that a run should stay within where the catalogue allows
RICH = 200  # characters of title and description from which on a caption adds little
FEW_ITEMS, MANY_ITEMS = 1_500, 5_000
RANKED_FROM, FITTED_FROM = 100, 500  # training examples, and positives, below which nothing is learned
CHOSEN_FROM = 40  # items, below which a list of ten is no choice
TEXTS_FROM = 100  # items that a language model is worth the time for
EPOCHS = 40  # of the users, for a next-item model
LENGTH = 50  # items of a history that next-item models read
TOKENS = 60.0  # of a document of the language model


@dataclass(frozen=True)
class Choice:
    """A stage, or a part of one, with its settings (None leaves a part out), why they are so, and its seconds."""

    name: str
    settings: dict[str, Any] | None = field(default_factory=dict)
    reason: str = ""
    parts: tuple[Choice, ...] = ()
    seconds: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds, those of its parts with them."""
        return self.seconds + sum(part.cost for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """A definition to be written.

    Attributes:
        split: of the log, with the reason; None where no stage reads it.
        stages: that run, in order; `left_out`, by stage the reason.
    """

    stages: tuple[Choice, ...]
    split: Choice | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def choose(found: Findings, node: Node) -> Plan:
    """Chooses stages and settings for a catalogue on a machine."""
    items = found.counts.items - found.counts.bare
    stages = [*_content(found, items, int(node.cpus) - READER_CPUS)]
    behaviour = found.behaviour
    if behaviour is None or not behaviour.parts:
        reason = behaviour.reason if behaviour is not None and behaviour.reason else "there is no log"
        left_out = dict.fromkeys(("features", "rank", "generate", "evaluate"), reason)
        return Plan((*stages, Choice("report", seconds=5)), left_out=left_out)
    part, left_out = behaviour.parts[0], {}
    learned: list[Choice] = []
    if part.examples >= RANKED_FROM:
        learned += _rank(behaviour, part)
    else:
        left_out["features, rank"] = _why_no_rank(part)
    left = BUDGET - sum(stage.cost for stage in (*stages, *learned))
    if part.asked and part.positives >= FITTED_FROM and items >= CHOSEN_FROM:
        learned.append(_generate(found, items, part, max(left, 300.0), gpus=node.gpus > 0))
    else:
        left_out["generate"] = (
            f"{items} items are no choice for lists of ten"
            if items < CHOSEN_FROM
            else f"{part.positives} positives to train on are too few, {FITTED_FROM} or more are worth it"
            if part.asked
            else "no user has two positives to train on and later ones to ask for"
        )
    if not learned:
        left_out["evaluate"] = "nothing is fitted on the log"
        return Plan((*stages, Choice("report", seconds=5)), left_out=left_out)
    learned.append(_evaluate(part, learned))
    return Plan((*stages, *learned, Choice("report", seconds=5)), _split(behaviour, part), left_out)


def _content(found: Findings, items: int, cpus: int) -> Iterator[Choice]:
    """Chooses the stages that need no log."""
    counts, media = found.counts, found.media
    reasons = {
        "media": "pictures are named by the ids of their items",
        "label": "the column that says what users liked",
        "positive_from": "ratings of this or more count as liked, those below as not",
    }
    drops = {}
    if found.behaviour is not None and found.behaviour.dropped > 0.4:
        drops, reasons["max_dropped_share"] = {"max_dropped_share": 0.8}, "much of the log cannot be used: see above"
    settings = {**found.ingest, **drops}
    yield Choice("ingest", settings, "; ".join(reasons[name] for name in settings), seconds=1 + counts.items / 1e5)
    interpret: dict[str, Any] = {}
    why = []
    if counts.bare > 0.05 * counts.items:
        interpret["max_reject_share"], _ = 1.0, why.append("many items have nothing to interpret")
    share = counts.filled["media"] / max(counts.items, 1)
    pictures = clips = 0
    if media is None:
        why.append("no media: texts alone are embedded")
    else:
        videos = media.kinds.get("video", 0) / max(sum(media.kinds.values()), 1)
        clips = round(videos * share * items)
        pictures = round(share * items) - clips
        if media.http:
            interpret["fetch"], _ = {"http": True}, why.append("media behind http are fetched, from public addresses")
        if (media.tried and media.opened < 0.7 * media.tried) or media.http:
            interpret["max_degraded_share"] = 1.0
            why.append("many media may not open")
        if found.characters >= RICH:
            interpret["caption"] = {"gate": {"thin_below": RICH}}
            why.append(f"captions only where title and description are short, half have {found.characters} characters")
    if items > 2_000:
        interpret["commit_rows"], _ = 128, why.append("larger blocks for many items")
    yield Choice("interpret", interpret, "; ".join(why), seconds=costs.interpret(items, pictures, clips, max(cpus, 1)))
    yield Choice("project", {"width": 128}, "one vector per item, of pictures and texts", seconds=1 + items / 3_000)
    codewords = _codewords(items)
    sizes = {"codebook_sizes": [codewords] * 3}
    room = f"{codewords}³ codes for {items:,} items, and no more codewords than have items to be the mean of"
    if items < FEW_ITEMS:
        settings, reason = {"method": "rqkmeans", **sizes}, f"k-means does for few items; {room}"
        yield Choice("quantize", settings, reason, seconds=costs.quantize(items, 0))
    else:
        yield Choice("quantize", {"method": "rqvae", **sizes}, room, seconds=costs.quantize(items, 1_500))


def _codewords(items: int) -> int:
    """Returns the codewords per level, a power of two: an eighth of the items, and codes for four times as many."""
    least = math.ceil((4 * items) ** (1 / 3))
    wanted = max(_below(items // 8), 1 << (least - 1).bit_length())
    return min(wanted, 1_024 if items > 2_000_000 else 256, _below(items))


def _below(number: int) -> int:
    """Returns the largest power of two that is not above a number, 1 at least."""
    return 1 << max(0, number.bit_length() - 1)


def _why_no_rank(part: Parts) -> str:
    if part.examples:
        return f"{part.examples} examples are too few to learn from"
    return (
        "what a ranker learns from compares the times of users, and these times or the log's length do not allow that"
    )


def _rank(behaviour: Behaviour, part: Parts) -> Iterator[Choice]:
    labels = (
        f"labels of both kinds, {behaviour.liked:.0%} of them liked"
        if behaviour.labelled
        else "without labels every event counts as liked, and four negatives are sampled for each"
    )
    yield Choice("features", {}, labels, seconds=1 + part.examples / 5e4)
    epochs = max(1, min(10, int(600 * costs.RANKED / max(part.examples, 1))))
    yield Choice(
        "rank",
        {"epochs": epochs},
        f"about {part.examples:,} rows to train on",
        seconds=costs.rank(part.examples, epochs),
    )


def _generate(found: Findings, items: int, part: Parts, budget: float, *, gpus: bool) -> Choice:
    """Chooses the recommenders of next items and their steps, within some seconds."""
    length = min(part.positives / max(part.sequences, 1), LENGTH)
    large = items >= MANY_ITEMS
    batch = 256 if part.sequences > 10_000 else 64
    epochs = -(-EPOCHS * part.sequences // batch)
    validation = 2_000 * (2e-4 + 2e-8 * items)  # seconds

    def fit(seconds: float, step: float, most: int, each: int = batch, valid: float = validation) -> tuple[dict, float]:
        steps = int(min(max(epochs * batch // each, 200), most, max(seconds / step, 100)) // 100 * 100)
        settings = {"batch_size": each, "steps": steps, "validate_every": steps // 5}
        return settings, steps * step + 5 * valid

    sasrec, first = fit(budget / 4, costs.step_of_items(batch * length, items), 5_000)
    parts = [Choice("sasrec", {"fit": sasrec}, "the baseline", seconds=first)]
    codewords = min(256, _below(max(items // 4, 2)))
    model = {"codes": 32, "model": {"dim": 128, "inner": 512}} if large else {}
    step = costs.step_of_items(batch / 2 * length, items, wide=8 if large else 2)
    course, second = fit(budget / 3, step, 6_000, batch // 2)
    reason = f"{model.get('codes', 16)} codes of {codewords} codewords for {items:,} items"
    parts.append(Choice("product_codes", {"codewords": codewords, **model, "fit": course}, reason, seconds=second))
    titles, captions = found.counts.filled["title"], found.counts.filled["media"]
    left = budget - first - second
    if items < TEXTS_FROM or not (titles or captions):
        why = f"{items} items are few" if items < TEXTS_FROM else "no texts to learn from"
        parts.append(Choice("language_model", None, f"left out, {why}"))
    elif left < 240:
        parts.append(Choice("language_model", None, "left out, it would take the run beyond an hour"))
    else:
        layers = 2 if items < MANY_ITEMS else 3
        course, third = fit(left * 0.7, costs.step_of_tokens(64 * TOKENS, layers), 1_000, 64, 500 * costs.QUERY)
        settings = {
            "tasks": "all",
            "backbone": {"name": "tiny", "layers": layers},
            "text_tokens": 1024 if items < 1_000 else 4096,
            "beams": 20,
            "fit": {**course, "valid_queries": 500},
        }
        parts.append(Choice("language_model", settings, "all tasks that have their texts", seconds=third))
    settings = {"filter_seen": False} if part.repeats else {}
    why = (
        "users choose the same items again"
        if part.repeats
        else f"{part.sequences:,} histories, {length:.0f} items each"
    )
    return Choice("generate", settings | ({"use_gpu": True} if gpus else {}), why, tuple(parts), costs.FIT_START)


def _evaluate(part: Parts, learned: list[Choice]) -> Choice:
    asked = min(part.asked, 5_000)
    spoken = any(p.name == "language_model" and p.settings is not None for choice in learned for p in choice.parts)
    seconds = 5 + (costs.QUERY * asked + 20 if spoken else 0)
    if part.asked > asked:
        return Choice("evaluate", {"queries": asked}, f"a sample of {part.asked:,} queries is enough", seconds=seconds)
    return Choice("evaluate", seconds=seconds)


def _split(behaviour: Behaviour, part: Parts) -> Choice:
    if part.split.kind == "time":
        assert behaviour.first is not None and behaviour.last is not None  # noqa: S101, PT018 - as times order users
        days = (behaviour.last - behaviour.first).days
        return Choice(
            "split", {"kind": "time"}, f"the last tenths of {days:,} days validate and test, as in production"
        )
    why = "times only order the events of one user" if behaviour.first is None else "a split by time leaves too little"
    return Choice("split", {"kind": "leave_last"}, f"{why}: each user's last event tests, the one before validates")
