"""What a definition may say of recommenders, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.recommenders.settings import LanguageModelSettings, ProductCodesSettings, RpgSettings


def test_settings_hold_tasks_and_not_where_they_were_read(tmp_path: Path) -> None:
    (own := tmp_path / "own.yaml").write_text("name: own\nprompt: 'Shown: {title}?'\ntarget: sid\n")
    settings = LanguageModelSettings(tasks=["sids_to_sid", str(own)])
    own.write_text("name: own\nprompt: 'Another: {title}?'\ntarget: sid\n")
    other = LanguageModelSettings(tasks=["sids_to_sid", str(own)])
    assert settings.model_dump(mode="json") != other.model_dump(mode="json")
    own.unlink()
    assert LanguageModelSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert [task.name for task in settings.trained_tasks] == ["sids_to_sid", "own"]


def test_the_first_task_that_recommends_by_semantic_ids_recommends() -> None:
    assert LanguageModelSettings(tasks=("title_to_sid", "sids_to_sid")).recommending_task.name == "sids_to_sid"
    assert LanguageModelSettings().recommending_task.every_position


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ("title_to_sid", "titles_to_sid")}, "name sids_to_sid among them"),
        ({"schedule": "content_first"}, "set schedule to joint"),
        ({"backbone": {"name": "smollm2"}}, "name tasks, or take tiny"),
    ],
)
def test_settings_of_the_language_model_that_do_not_fit(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LanguageModelSettings.model_validate(settings)


def test_settings_of_the_product_codes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must be a power of two"):
        ProductCodesSettings(codewords=100)
    for codes, even in ((24, 16), (200, 128), (3, 2)):
        with pytest.raises(ValueError, match=f"write codes: {even}$|write codes: {even} "):
            ProductCodesSettings(codes=codes)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="residual"):
            ProductCodesSettings.model_validate({"model": {"residual": share}})


def test_settings_of_rpg_that_do_not_fit_and_those_that_others_leave_as_they_are() -> None:
    with pytest.raises(ValueError, match="must be a power of two"):
        RpgSettings(codewords=100)
    with pytest.raises(ValueError, match="temperature"):
        RpgSettings.model_validate({"model": {"temperature": 0}})
    settings = RpgSettings.model_validate({"model": {"dim": 128}, "fit": {"steps": 10}})
    assert (settings.model.heads, settings.model.temperature) == (4, 0.03)
    assert (settings.fit.learning_rate, settings.fit.batch_size) == (0.01, 256)


@pytest.mark.parametrize(
    ("fit", "warmup"),
    [
        ({"steps": 1000}, 100),
        ({"steps": 10_000}, 1000),
        ({"steps": 10_001}, 10_000),
        ({"steps": 50, "warmup": 50}, 5),
        ({}, 10_000),
    ],
)
def test_a_fit_of_few_steps_warms_up_for_a_tenth_of_them(fit: dict, warmup: int) -> None:
    settings = RpgSettings.model_validate({"fit": fit})
    assert settings.fit.warmup == warmup
    assert RpgSettings.model_validate(settings.model_dump(mode="json")) == settings
