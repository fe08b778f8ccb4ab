"""What the recommenders of next items are worth: their lists, what each task has learned, and how they were fitted."""

from __future__ import annotations

from typing import Any

from workflows.engine.text import count, decimal, estimate, interval, is_number, part, percent, signed
from workflows.report.contents import Figure, Table, intervals, trend

NAMES = {
    "product_codes": "product codes",
    "rpg": "RPG",
    "language_model": "language model",
    "language_model+sasrec": "language model, rescored by SASRec",
    "language_model+product_codes": "language model, rescored by product codes",
    "sasrec": "SASRec",
    "item_knn": "item-kNN",
    "ensemble": "ensemble",
    "pipeline": "the service's pipeline",
    "content": "content",
    "popularity": "popularity",
    "truth": "truth",
    # what runs of earlier versions call three of them
    "parallel": "product codes",
    "sequential": "language model",
    "itemknn": "content",
}
SHOWN = {  # metrics that are no decimals of four digits
    **dict.fromkeys(("queries", "cold_queries", "tail_queries"), count),
    **dict.fromkeys(("coverage@10", "fair_0.8@1", "fair_0.8@10"), percent),
    "popularity_bias@10": lambda value: decimal(value, 2),
}
BASELINES = ("sasrec", "item_knn", "content", "itemknn", "popularity")
WITH_INTERVAL = ("recall@10", "ndcg@10")
PENALISED = ("ndcg@10", "fair_0.8@10", "tail_ndcg@10", "popularity_bias@10")
TASK_MEASURES = {
    "exact@1": "the item is first",
    "exact@10": "the item is among ten",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "loss": "loss, nats per token",
}


def scores(metrics: dict[str, Any], chosen: str | None) -> Table | None:
    """Returns recall@10 and NDCG@10 of every recommender; beside them, where there are any, those as is.

    Args:
        metrics: the metrics of evaluate; here as below any of it may be missing.
        chosen: the recommender that counts as the generator.
    """
    found = _recommenders(metrics)
    kinds = ("", " as is") if any(part(values, "as_is") for _, _, values in found) else ("",)
    columns = [(kind, metric) for kind in kinds for metric in WITH_INTERVAL]
    rows = [
        [
            f"{name}, chosen on validation" if key == chosen else name,
            *(cell for kind, metric in columns for cell in estimate(part(values, "as_is") if kind else values, metric)),
        ]
        for key, name, values in found
    ]
    heads = [cell for kind, metric in columns for cell in (f"{_head(metric)}{kind}", "95% interval")]
    return Table(["recommender", *heads], rows) if rows else None


def details(metrics: dict[str, Any], *, as_is: bool) -> Table | None:
    """Returns every metric of the lists by recommender: of the lists that count, or of those as is."""
    every = [(name, part(values, "as_is") if as_is else values) for _, name, values in _recommenders(metrics)]
    found = [(name, values) for name, values in every if values]
    keys = dict.fromkeys(key for _, values in found for key in values if "@" in key or key in SHOWN)
    rows = [
        [_head(key), *(SHOWN.get(key, decimal)(values.get(key)) for _, values in found)]
        for key in keys
        if not key.endswith("_interval")
    ]
    return Table(["metric", *(name for name, _ in found)], rows) if rows else None


def score_figures(metrics: dict[str, Any]) -> list[Figure]:
    """Recall and NDCG with their intervals."""
    by_name = {name: values for _, name, values in _recommenders(metrics)}
    return [
        figure
        for metric in WITH_INTERVAL
        for figure in intervals(
            f"{_head(metric)} on the test split, with 95% intervals", by_name, metric, x_label=_head(metric)
        )
    ]


def sentences(metrics: dict[str, Any]) -> list[str]:
    """Returns what intervals allow to say of generator and ensemble beside others, and what the queries are about."""
    lines = [
        _beside(title, NAMES[key], metrics[f"{title}_over_{key}"])
        for title, keys in (("generator", BASELINES), ("ensemble", NAMES))
        for key in keys
        if f"{title}_over_{key}" in metrics
    ]
    pipeline = part(metrics, "pipeline")
    if pipeline.get("best") in NAMES and interval(bounds := pipeline.get("over_best_interval")):
        lines.append(
            f"The service's pipeline beside {NAMES[pipeline['best']]}, the best single recommender on its own "
            f"{count(pipeline.get('queries'))} queries: NDCG@10 {_verdict(pipeline['over_best'], bounds)}."
        )
    closed = {NAMES[key]: value for key, value in part(metrics, "gap_closed").items() if key in NAMES}
    if closed:
        shares = ", ".join(f"{name} {percent(share)}" for name, share in closed.items())
        lines.append(f"Of the gap between popularity and the truth, by NDCG@10, is closed: {shares}.")
    generator = metrics.get("generator") or {}
    if is_number(generator.get("queries")):
        cold = generator.get("cold_queries")
        rest = f"; {count(cold)} of them ask for an item without an event in training" if is_number(cold) else ""
        lines.append(f"Queries over the whole catalogue: {count(generator['queries'])}{rest}.")
    return lines


def footnotes(metrics: dict[str, Any]) -> list[str]:
    """Returns what is to be known of lists that come from a search, or from an ensemble."""
    weights = part(part(metrics, "ensemble"), "weights")
    shares = ", ".join(f"{NAMES[key]} {decimal(weight, 2)}" for key, weight in weights.items() if key in NAMES)
    mixed = f"The ensemble adds up the log-probabilities of other recommenders, weighed on validation: {shares}."
    searched = [
        f"{name[:1].upper()}{name[1:]}: {percent(values['exact_lists'])} of its lists are proved to hold the best "
        "items of the whole catalogue; in the others its search may have missed some."
        for _, name, values in _recommenders(metrics)
        if is_number(values.get("exact_lists"))
    ]
    return [*searched, *([mixed] if shares else [])]


def penalties(metrics: dict[str, Any]) -> Table | None:
    """Tells what penalties on popularity give and take on validation."""
    rows = [
        [name, decimal(point.get("penalty"), 2), *(SHOWN.get(key, decimal)(point.get(key)) for key in PENALISED)]
        for _, name, values in _recommenders(metrics)
        for point in values.get("penalties", [])
    ]
    return Table(["recommender", "penalty", *map(_head, PENALISED)], rows) if rows else None


def tasks(metrics: dict[str, Any]) -> Table | None:
    """Tells how well each task is done on what training did not see, beside the control with shuffled captions.

    Args:
        metrics: `tasks` of `metrics/evaluate.json`, see `models.generation.heldout`.
    """
    rows = [
        [
            task,
            name,
            count(values.get("examples")),
            *estimate(values, measure),
            decimal(part(values, "shuffled").get(measure)),
            *estimate(part(values, "gain"), measure, signed),
        ]
        for task, values in metrics.items()
        for measure, name in TASK_MEASURES.items()
        if measure in values
    ]
    columns = ["task", "measure", "examples", "value", "95% interval", "captions shuffled", "difference"]
    return Table([*columns, "95% interval"], rows) if rows else None


def task_sentences(metrics: dict[str, Any]) -> list[str]:
    """Whether the tasks that read captions are done by reading them."""
    lines = []
    for task, values in metrics.items():
        gain = part(values, "gain")
        measure = next((each for each in ("exact@10", "token_f1") if interval(gain.get(f"{each}_interval"))), None)
        if measure is None:
            continue
        low, high = gain[f"{measure}_interval"]
        bounds = f"{signed(gain[measure])} ({signed(low)} to {signed(high)})"
        if low > 0:
            lines.append(f"{task} reads its captions: {measure} with the item's own is {bounds} above another's.")
        else:
            lines.append(
                f"{task} is not shown to read its captions: {measure} changes by {bounds} with the item's own."
            )
    return lines


def training(history: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    """Training curves of every recommender that was fitted: the loss, NDCG@10 on validation with its best step, and
    the held-out loss of each task.

    Args:
        history: `history` of `metrics/generate.json`, reports by recommender.
    """
    drawn = []
    for name, reports in history.items():
        title = NAMES.get(name, name)
        states = [report for report in reports if "averaged" not in report]  # an average of states is no step
        for key, what in (("train_loss", "training loss"), ("valid_ndcg@10", "NDCG@10 on validation")):
            known = [report for report in states if is_number(report.get(key)) and is_number(report.get("step"))]
            if known:
                best = max(known, key=lambda report: report[key])["step"] if key != "train_loss" else None
                drawn.append(trend(f"{title}: {what}", known, "step", {key: what}, best))
        by_task = [{"step": report["step"], **report["losses"]} for report in reports if report.get("losses")]
        drawn += [
            trend(f"{title}: held-out loss of {task}", by_task, "step", {task: "nats per token"})
            for task in (by_task[0] if by_task else ())
            if task != "step"
        ]
    return drawn


def _recommenders(metrics: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    named = [(key, name, metrics.get(key) or {}) for key, name in NAMES.items()]
    return [(key, name, values) for key, name, values in named if any(metric in values for metric in WITH_INTERVAL)]


def _head(metric: str) -> str:
    return metric.replace("ndcg", "NDCG").replace("_", " ")


def _beside(title: str, baseline: str, over: dict[str, Any]) -> str:
    """Returns what the intervals of the ratios allow to say.

    >>> _beside("generator", "SASRec", {"ndcg@10": 1.2, "ndcg@10_interval": [1.1, 1.3]})
    'The generator beside SASRec: NDCG@10 is higher, 1.20 times (1.10 to 1.30); too little to compare recall@10.'
    """
    parts = []
    for metric in ("ndcg@10", "recall@10"):
        ratio, bounds = over.get(metric), over.get(f"{metric}_interval")
        if not (is_number(ratio) and interval(bounds)):
            parts.append(f"too little to compare {_head(metric)}")
            continue
        parts.append(f"{_head(metric)} {_verdict(ratio, bounds)}")
    return f"The {title} beside {baseline}: {'; '.join(parts)}."


def _verdict(ratio: Any, bounds: Any) -> str:
    low, high = bounds
    verdict = "is higher" if low > 1 else "is lower" if high < 1 else "is not told apart"
    return f"{verdict}, {decimal(ratio, 2)} times ({interval(bounds, 2)})"
