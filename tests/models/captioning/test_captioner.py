from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from models.captioning.captioner import CAPTION_PROMPT, ChatCaptioner, Context
from models.captioning.tagger.describe import describe
from models.captioning.tagger.tagger import Tagger
from models.chat.base import Failure, Prompt
from models.common.encoders import image_encoder, imagenet_labels

PICTURES = [
    np.full((50, 40, 3), (210, 30, 40), np.uint8),
    np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8),
    np.tile(np.array([[[20, 40, 110]], [[250, 250, 250]]], np.uint8).repeat(6, 0), (4, 48, 1)),
]


@dataclass(frozen=True)
class Answers:
    """A chat that answers by a function."""

    of: Callable[[Prompt], str | Failure]

    def load(self) -> None:
        pass

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        return [self.of(prompt) for prompt in prompts]


def test_the_tagger_takes_labels_from_vectors_that_are_there_and_sees_for_itself_otherwise():
    vectors = image_encoder().encode(PICTURES)
    labels = imagenet_labels()
    expected = [
        describe(picture, likely, labels)
        for picture, likely in zip(PICTURES, image_encoder().label_probabilities(vectors), strict=True)
    ]
    given = [Context(image_vector=vector) for vector in vectors]
    assert Tagger().caption(PICTURES, given) == expected
    assert Tagger().caption(PICTURES, [given[0], Context(), given[2]]) == expected
    foreign = [Context(image_vector=np.ones(7, np.float32)) for _ in PICTURES]
    assert Tagger(vector_is_local=False).caption(PICTURES, foreign) == expected
    assert Tagger().caption([], []) == []


def test_a_given_vector_decides_the_label():
    sure = np.zeros(1280, np.float32)
    sure[:] = image_encoder()._net._fc.weight[7].detach().numpy() * 40
    (caption,) = Tagger().caption(PICTURES[:1], [Context(image_vector=sure)])
    assert caption.startswith(f"A picture of {imagenet_labels()[7]}, mainly red")


def test_the_model_is_shown_the_picture_and_told_the_title_only_where_wanted():
    def title_or_none(prompt: Prompt) -> str:
        (image,) = prompt.images
        return f"{image.shape} {prompt.text}"

    contexts = [Context("A  red\n\ncoat"), Context(None), Context(" ")]
    told = ChatCaptioner(Answers(title_or_none)).caption(PICTURES, contexts)
    assert all(text.startswith(f"{picture.shape} ") for text, picture in zip(told, PICTURES, strict=True))
    assert "'A red coat'" in told[0]
    assert told[1:] == [f"{picture.shape} {CAPTION_PROMPT}" for picture in PICTURES[1:]]

    silent = ChatCaptioner(Answers(title_or_none), prompt="What is it?", context=False)
    assert silent.caption(PICTURES[:1], contexts[:1]) == ["(50, 40, 3) What is it?"]
    assert (silent.reads, ChatCaptioner(Answers(title_or_none)).reads) == ((), ("title",))


def test_a_title_of_any_length_costs_so_much_and_no_more():
    captioner = ChatCaptioner(Answers(lambda prompt: str(len(prompt.text))))
    lengths = captioner.caption(PICTURES[:2], [Context("x" * 300), Context("{0}%s" * 100_000)])
    assert max(map(int, lengths)) < len(CAPTION_PROMPT) + 500


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A red coat.", "A red coat."),
        ("  A red\n\n coat\twith buttons. ", "A red coat with buttons."),
        ('"A red coat."', "A red coat."),
        ("Sure! Here is a factual sentence: A red coat.", "A red coat."),
        ("Here's the description of the picture: **A red coat.**", "A red coat."),
        ("Certainly, a red coat.", "a red coat."),
        ("Here is a red coat on a chair.", "Here is a red coat on a chair."),
        ("A sure-footed goat. Here is: more", "A sure-footed goat. Here is: more"),
        ("A sign that says: sale", "A sign that says: sale"),
        ("Surely a coat.", "Surely a coat."),
    ],
)
def test_answers_lose_their_courtesies_and_nothing_else(answer, caption):
    assert ChatCaptioner(Answers(lambda prompt: answer)).caption(PICTURES[:1], [Context()]) == [caption]


@pytest.mark.parametrize("answer", ["", " \n ", '""', "Sure!"])
def test_an_empty_answer_is_a_refusal_and_a_failure_stays_one(answer):
    failure = Failure("model_timeout", "late")
    captioner = ChatCaptioner(Answers(lambda prompt: failure if "late" in prompt.text else answer))
    refused, late = captioner.caption(PICTURES[:2], [Context(), Context("late")])
    assert isinstance(refused, Failure)
    assert refused.code == "model_refused"
    assert late == failure
