"""Scores of generated answers: known numbers, and ranges."""

import pytest

from das_gym.registration import register_metric, score_texts
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.task import chosen_option, exact_match, generated_vqa_accuracy, score_answer

LETTERED = ("A", "B", "C", "D")
CLASSES = ("land", "bare land", "airport", "railway station")


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Two dogs.", "the 2 dogs", True),
        ("", "", False),
        (" ", "the", False),
        ("a", "A.", True),
        ("a", "the", False),
        ("?", "?", True),
    ],
)
def test_exact_match_normalizes(answer, reference, same):
    assert exact_match(answer, reference) == float(same)
    assert exact_match(reference, answer) == float(same)


def test_vqa_accuracy_of_a_blank_answer_is_zero():
    assert generated_vqa_accuracy(" ", [""] * 10) == 0.0
    assert generated_vqa_accuracy("a", ["", "a", "the"]) == 1.0


@pytest.mark.parametrize(
    ("generated", "chosen"),
    [
        ("B", "B"),
        ("a", "A"),
        ("D. a dog", "D"),
        ("The answer is C.", "C"),
        ("Answer: D", "D"),
        ("The correct option is (B), a dog", "B"),
        ("a dog", None),
        ("A or B", None),
        ("", None),
    ],
)
def test_chosen_option_of_letters(generated, chosen):
    assert chosen_option(generated, LETTERED) == chosen


@pytest.mark.parametrize(
    ("generated", "chosen"),
    [
        ("Bare Land.", "bare land"),
        ("an airport or bare land", None),
        ("landing strip", None),
        ("", None),
    ],
)
def test_chosen_option_of_words(generated, chosen):
    assert chosen_option(generated, CLASSES) == chosen


def example(**fields: object) -> AnswerExample:
    return AnswerExample(**{"key": "k", "images": (), "question": "?", "answer": "red", **fields})  # type: ignore[arg-type]


def test_score_answer_by_options_annotators_or_reference():
    assert score_answer(example(answer="B", options=LETTERED), "B. red") == 1.0
    assert score_answer(example(answer="B", options=LETTERED), "red") == 0.0
    assert score_answer(example(answers=("red", "red", *["blue"] * 8)), "Red") == pytest.approx(0.6)
    assert score_answer(example(), "the Red") == 1.0
    assert score_answer(example(), "blue") == 0.0


@pytest.mark.usefixtures("own_metrics")
def test_register_metric_rejects_wrong_names_functions_and_scores():
    with pytest.raises(TypeError, match="`function`"):
        register_metric("mine", 3)
    register_metric("percent", lambda example, text: 100.0 if text == example.answer else 0.0)
    with pytest.raises(ValueError, match="percent"):
        register_metric("percent", score_answer)
    assert score_texts("percent", [example()], ["no"]).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"percent.*0\.\.1"):
        score_texts("percent", [example()], [example().answer])
