"""Which models a worker of generate fits, and from what, after it was killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.recommenders import fitting
from workflows.distributed import training
from workflows.stages.generate import loop
from workflows.stages.generate.settings import Config

NAMES = ["sasrec", "product_codes", "language_model"]
NDCG = fitting.NDCG
STATE = {"weight": torch.ones(2)}


def point(name: str, step: int, gain: float) -> dict[str, Any]:
    return {"name": name, "step": step, NDCG: gain, "seconds": float(step)}


def fit_of(name: str) -> list[dict[str, Any]]:
    """The reports of a whole fit, but for its last one."""
    losses = {"name": name, "step": 0, "losses": {"task": 2.0}}
    return [losses, point(name, 10, 0.2), {"name": name, "step": 15}, point(name, 20, 0.1)]


END = {"name": "sasrec", "step": 20, "seconds": 20.0, "best": {"step": 10, NDCG: 0.2, "seconds": 10.0}}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Any], list[dict[str, Any]]]]:
    """Call the loop on what a killed attempt has kept: its reports and its state; fits, and all reports, come back."""

    def start(kept: list[dict[str, Any]], state: dict[str, torch.Tensor] | None) -> Any:
        reports, fits = list(kept), []

        def fit(name: str, *_: Any, state: Any, **__: Any) -> None:
            fits.append((name, state))
            reports.extend(fit_of(name)[len([report for report in reports if report["name"] == name]) :])

        monkeypatch.setattr(loop, "_fit", fit)
        monkeypatch.setattr(training, "restored", lambda load: state)
        monkeypatch.setattr(training, "reported", lambda: list(reports))
        monkeypatch.setattr(training, "report", lambda metrics, save, *, every_s: reports.append(metrics))
        settings = Config().model_dump(mode="json")
        loop.loop({"root": "", "seed": 0, "names": NAMES, "settings": settings, "data": None})
        return fits, reports

    return start


def test_every_model_is_fitted_and_tells_its_best(start: Callable[..., Any]) -> None:
    fits, reports = start([], None)
    assert fits == [(name, None) for name in NAMES]
    assert [report for report in reports if "best" in report] == [{**END, "name": name} for name in NAMES]
    assert loop.curve_of(reports, "product_codes") == [
        {"step": 0, "losses": {"task": 2.0}},
        {"step": 10, NDCG: 0.2, "seconds": 10.0},
        {"step": 20, NDCG: 0.1, "seconds": 20.0},
    ]


@pytest.mark.parametrize(
    ("kept", "state", "expected"),
    [
        (fit_of("sasrec")[:2], STATE, [("sasrec", STATE), ("product_codes", None), ("language_model", None)]),
        (fit_of("sasrec"), STATE, [("sasrec", STATE), ("product_codes", None), ("language_model", None)]),
        ([*fit_of("sasrec"), END], {}, [("product_codes", None), ("language_model", None)]),
        (
            [*fit_of("sasrec"), END, *fit_of("product_codes")[:2]],
            STATE,
            [("product_codes", STATE), ("language_model", None)],
        ),
        (
            [*fit_of("sasrec"), END, *fit_of("product_codes"), {**END, "name": "product_codes"}],
            {},
            [("language_model", None)],
        ),
    ],
    ids=["in the first", "at its end", "behind it", "in the second", "behind that"],
)
def test_the_state_is_of_the_first_model_that_is_not_finished(
    start: Callable[..., Any], kept: list[dict[str, Any]], state: dict[str, Any], expected: list[Any]
) -> None:
    fits, reports = start(kept, state)
    assert fits == expected
    assert [report["name"] for report in reports if "best" in report] == NAMES
    assert [len(loop.curve_of(reports, name)) for name in NAMES] == [3, 3, 3]
