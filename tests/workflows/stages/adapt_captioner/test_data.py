from __future__ import annotations

from workflows.stages.adapt_captioner.data import whole


def test_sentences_that_say_half_of_what_rich_ones_say_are_not_whole() -> None:
    rich = [["Red dotted woven chair."]] * 3
    said = [["Chair.", "A chair."], ["Side chair."], ["Red dotted chair."], *rich, []]
    assert whole(said).tolist() == [False, False, True, True, True, True, False]


def test_sentences_of_about_one_length_are_all_whole() -> None:
    assert whole([["Red chair."], ["Blue bag."], ["Red woven bag."]]).all()
    assert whole([["Chair."], ["Bag."]]).all()


def test_one_talkative_text_does_not_make_the_others_poor() -> None:
    said = [["Red chair."]] * 30 + [["Red dotted woven side chair with a striped lamp and vase."]]
    assert whole(said).all()


def test_where_nothing_is_said_nothing_is_whole() -> None:
    assert whole([[], []]).tolist() == [False, False]
