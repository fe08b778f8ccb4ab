"""From what there is in a catalogue to a definition that fits it: every choice with its reason and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from models.semantic_ids.quantizer import suited_sizes
from workflows.distributed.pools import READER_CPUS, Node
from workflows.init import costs
from workflows.init.findings import Behaviour, Findings, Parts

BUDGET = 45 * 60.0  # seconds that a run should stay within where the catalogue allows
RICH = 200  # characters of title and description from which on a caption adds little
TOLD = 0.8  # share of pairs, see `media.Media`, from which on the shipped captioner knows such pictures
FEW_ITEMS, MANY_ITEMS = 1_500, 5_000
RANKED_FROM, FITTED_FROM = 100, 500  # training examples, and positives, below which nothing is learned
CHOSEN_FROM = 40  # items, below which a list of ten is no choice
TEXTS_FROM = 100  # items that a language model is worth the time for
DROPPED = 0.4  # share of a sample's events, from which on the whole log may lose more than half
EPOCHS, LEAST_STEPS = 40, 500  # of a next-item model
VALIDATIONS, VALID_QUERIES, VALID_SEARCHES = 5, 2_000, 500  # of a fit, and queries of each
LENGTH = 50  # items of a history that next-item models read
DOCUMENTS, TOKENS = 64, 75.0  # of a step of the language model, and tokens of a document
LOG_STAGES = ("features", "rank", "generate", "evaluate")


@dataclass(frozen=True)
class Choice:
    """A stage, or a part of one.

    Attributes:
        name: of the stage or part.
        settings: that differ from the defaults; None leaves a part out.
        reason: why they are so.
        parts: of the stage.
        seconds: that it takes, without its parts.
    """

    name: str
    settings: dict[str, Any] | None = field(default_factory=dict)
    reason: str = ""
    parts: tuple[Choice, ...] = ()
    seconds: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds, those of its parts with them."""
        return self.seconds + sum(part.cost for part in self.parts)


FITS = ("quantize", "rank", "generate")


@dataclass(frozen=True)
class Plan:
    """A definition to be written.

    Attributes:
        stages: that run, in order.
        split: of the log; None where no stage reads it.
        left_out: reasons, by the stages that are left out.
    """

    stages: tuple[Choice, ...]
    split: Choice | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def at_pace(plan: Plan, pace: float) -> Plan:
    """Returns a plan whose fits take so many times as long."""

    def slower(choice: Choice) -> Choice:
        return replace(choice, seconds=choice.seconds * pace, parts=tuple(map(slower, choice.parts)))

    stages = tuple(slower(choice) if choice.name in FITS else choice for choice in plan.stages)
    return replace(plan, stages=stages)


def choose(found: Findings, node: Node) -> Plan:
    """Chooses stages and settings for a catalogue on a machine."""
    items, behaviour = found.counts.usable, found.behaviour
    stages = list(_content(found, items, cpus=max(1, int(node.cpus) - READER_CPUS)))
    left_out: dict[str, str] = {}
    split = None
    if behaviour is None or not behaviour.parts:
        left_out[", ".join(LOG_STAGES)] = behaviour.reason if behaviour is not None else "there is no log"
    else:
        part, before = behaviour.parts[0], len(stages)
        if part.examples >= RANKED_FROM:
            stages += _rank(behaviour, part)
        else:
            left_out["features, rank"] = _no_rank(part)
        if why := _no_generate(part, items):
            left_out["generate"] = why
        else:
            left = max(BUDGET - sum(stage.cost for stage in stages), 300.0)
            stages.append(_generate(found, items, part, left, gpus=node.gpus > 0))
        if len(stages) == before:
            left_out["evaluate"] = "nothing is fitted on the log"
        else:
            stages.append(_evaluate(part, stages[-1], items))
            split = _split(behaviour, part)
    return Plan((*stages, Choice("report", seconds=5)), split, left_out)


def _content(found: Findings, items: int, *, cpus: int) -> Iterator[Choice]:
    """Chooses the stages that need no log."""
    reasons = {
        "media": "pictures are named by the ids of their items",
        "label": "the column that says what users liked",
        "positive_from": "ratings from this on count as liked, those below as not",
        "max_reject_share": "many items have no id of their own",
        "max_dropped_share": "most events cannot be used, see what `tesserec init` says of them",
    }
    ingest = dict(found.ingest)
    if found.counts.unnamed > 0.1 * found.counts.items:
        ingest["max_reject_share"] = 1.0
    if found.behaviour is not None and found.behaviour.dropped > DROPPED:
        ingest["max_dropped_share"] = 1.0
    why = "; ".join(reasons[name] for name in ingest)
    yield Choice("ingest", ingest, why, seconds=1 + found.counts.items / 1e5)
    settings: dict[str, Any] = {}
    whys = []
    for more, reason in _interpret(found, items):
        settings |= more
        whys.append(reason)
    share = found.counts.filled["media"] / max(found.counts.items, 1)
    kinds = found.media.kinds if found.media is not None else {}
    clips = round(items * share * kinds.get("video", 0) / max(sum(kinds.values()), 1))
    seconds = costs.interpret(items, round(items * share) - clips, clips, cpus)
    yield Choice("interpret", settings, "; ".join(whys), seconds=seconds)
    yield Choice("project", {"width": 128}, "one vector per item, of pictures and texts", seconds=1 + items / 3_000)
    sizes, suited = {"codebook_sizes": "auto"}, suited_sizes(items)
    room = f"{len(suited)} levels of {suited[0]} codes for {items:,} items"
    if items < FEW_ITEMS:
        settings = {"method": "rqkmeans", **sizes}
        yield Choice("quantize", settings, f"k-means does for few items; {room}", seconds=costs.quantize(items, 0))
    else:
        yield Choice("quantize", {"method": "rqvae", **sizes}, room, seconds=costs.quantize(items, 1_500))


def _interpret(found: Findings, items: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields settings of interpret, each with its reason."""
    counts, media = found.counts, found.media
    if counts.bare > 0.05 * counts.items:
        yield {"max_reject_share": 1.0}, "many items have nothing to interpret"
    if media is None:
        yield {}, "no media: texts alone are embedded"
    else:
        if media.http:
            yield {"fetch": {"http": True}}, "media behind http are fetched, from public addresses"
        if media.http or 0 < media.opened < 0.7 * media.tried:  # where none opens, something is wrong
            yield {"max_degraded_share": 1.0}, "many media may not open"
        caption: dict[str, Any] = {}
        whys = []
        if media.told >= TOLD:
            caption["backend"] = "qformer"
            whys.append(f"the shipped captioner tells pictures by the texts of their items, {media.told:.0%} of pairs")
        if found.characters >= RICH:
            caption["gate"] = {"thin_below": RICH}
            whys.append(f"half of the texts have {found.characters} characters: captions only where there are few")
        if caption:
            yield {"caption": caption}, "; ".join(whys)
    if items > 2_000:
        yield {"commit_rows": 128}, "larger blocks for many items"


def _below(number: int) -> int:
    """Returns the largest power of two that is not above a number, 1 at least."""
    return 1 << max(0, number.bit_length() - 1)


def _no_rank(part: Parts) -> str:
    if part.examples:
        return f"{part.examples} examples are too few to learn from, {RANKED_FROM} are the least"
    return "a ranker compares the times of users, which these times do not allow, or the log is too short"


def _no_generate(part: Parts, items: int) -> str:
    if items < CHOSEN_FROM:
        return f"{items} items are no choice for lists of ten"
    if not part.asked:
        return "no user has two positives to train on, and later ones to ask for"
    if part.positives < FITTED_FROM:
        return f"{part.positives} positives are too few to learn from, {FITTED_FROM} are the least"
    return ""


def _rank(behaviour: Behaviour, part: Parts) -> Iterator[Choice]:
    labels = (
        f"labels of both kinds, {behaviour.liked:.0%} of them liked"
        if behaviour.labelled
        else "without labels every event counts as liked, and four negatives are sampled for each"
    )
    yield Choice("features", {}, labels, seconds=1 + part.examples / 5e4)
    epochs = max(1, min(10, int(600 * costs.RANKED / part.examples)))
    seconds = costs.rank(part.examples, epochs)
    yield Choice("rank", {"epochs": epochs}, f"about {part.examples:,} rows to train on", seconds=seconds)


def _generate(found: Findings, items: int, part: Parts, budget: float, *, gpus: bool) -> Choice:
    """Chooses the recommenders of next items and their steps, within some seconds."""
    length = min(part.positives / part.sequences, LENGTH)
    large, batch = items >= MANY_ITEMS, 256 if part.sequences > 10_000 else 64
    validation = costs.validation(VALID_QUERIES, items)
    step = costs.sasrec_step(batch * length, items)
    fit, first = _fit(budget / 4, step, validation, batch, part, most=5_000)
    parts = [Choice("sasrec", {"fit": fit}, "the baseline", seconds=first)]
    codewords = min(256, _below(max(items // 4, 2)))
    model = {"codes": 32, "model": {"dim": 128, "inner": 512}} if large else {}
    step = costs.product_codes_step(batch / 2 * length, large=large)
    fit, second = _fit(budget / 3, step, validation, batch // 2, part, most=6_000)
    reason = f"{model.get('codes', 16)} codes of {codewords} codewords for {items:,} items"
    parts.append(Choice("product_codes", {"codewords": codewords, **model, "fit": fit}, reason, seconds=second))
    parts.append(_language_model(found, items, part, budget - first - second))
    why = f"{part.sequences:,} histories, {length:.0f} items each"
    settings = {"use_gpu": True} if gpus else {}
    if part.repeats:
        settings["filter_seen"], why = False, f"{why}; users choose the same items again"
    return Choice("generate", settings, why, tuple(parts), costs.FIT_START + costs.item_knn(part.positives, items))


def _language_model(found: Findings, items: int, part: Parts, budget: float) -> Choice:
    layers = 3 if items >= MANY_ITEMS else 2
    validation = costs.searches(VALID_SEARCHES, layers)
    step = costs.language_model_step(DOCUMENTS * TOKENS, layers)
    if not found.counts.filled["title"] and not found.counts.filled["media"]:
        return Choice("language_model", None, "left out, no titles or captions to learn from")
    if items < TEXTS_FROM:
        return Choice("language_model", None, f"left out, {items} items are few")
    if budget < LEAST_STEPS * step + VALIDATIONS * validation:
        return Choice("language_model", None, "left out, it would take the run beyond an hour")
    fit, seconds = _fit(budget, step, validation, DOCUMENTS, part, most=1_000)
    settings = {
        "tasks": "all",
        "backbone": {"name": "tiny", "layers": layers},
        "text_tokens": 1024 if items < FEW_ITEMS else 4096,
        "beams": 20,
        "fit": {**fit, "valid_queries": VALID_SEARCHES},
    }
    return Choice("language_model", settings, "all tasks that have their texts", seconds=seconds)


def _fit(
    budget: float, step: float, validation: float, batch: int, part: Parts, *, most: int
) -> tuple[dict[str, Any], float]:
    """Returns the settings of a fit that stays within some seconds, and the seconds that it takes."""
    wanted = min(max(EPOCHS * part.sequences // batch, LEAST_STEPS), most)
    affordable = int((budget - VALIDATIONS * validation) / step)
    steps = max(min(wanted, affordable), VALIDATIONS * 10) // 10 * 10
    settings = {"batch_size": batch, "steps": steps, "validate_every": steps // VALIDATIONS}
    return settings, steps * step + VALIDATIONS * validation


def _evaluate(part: Parts, generate: Choice, items: int) -> Choice:
    asked = min(part.asked, 5_000)
    lists = asked if part.repeats else 2 * asked  # masked, and as is
    seconds = 5 + costs.validation(5 * lists, items)
    for model in generate.parts:
        if model.name == "language_model" and model.settings is not None:
            seconds += 20 + costs.searches(lists, model.settings["backbone"]["layers"])
    if part.asked > asked:
        return Choice("evaluate", {"queries": asked}, f"a sample of {part.asked:,} queries is enough", seconds=seconds)
    return Choice("evaluate", seconds=seconds)


def _split(behaviour: Behaviour, part: Parts) -> Choice:
    if behaviour.first is not None and behaviour.last is not None and part.split.kind == "time":
        days = (behaviour.last - behaviour.first).days
        return Choice("split", {"kind": "time"}, f"the last tenths of {days:,} days validate and test")
    why = "times only order the events of one user" if behaviour.first is None else "a split by time leaves too little"
    return Choice("split", {"kind": "leave_last"}, f"{why}: each user's last event tests, the one before validates")
