"""Scores of generated answers: known numbers, and ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.metrics import chosen_option, exact_match, score_answer, summary_by_kind, vqa_accuracy_of

TEXTS = st.text(st.sampled_from("aAbBnoyes 012,.'()the\n"), max_size=12)
LETTERED = ("A", "B", "C", "D")
CLASSES = ("land", "bare land", "airport", "railway station")


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Two dogs.", "the 2 dogs", True),
        ("T2", "t2", True),
        ("Left Lung, Right", "left lung right", True),
        ("dont", "don't", True),
        ("dog", "dogs", False),
        ("", "", False),
        (" ", "the", False),
        ("a", "A.", True),
        ("a", "the", False),
        ("An", "a", False),
        ("?", "!", False),
        ("?", "?", True),
    ],
)
def test_exact_match_after_normalising(answer: str, reference: str, same: bool):
    assert exact_match(answer, reference) == float(same)
    assert exact_match(reference, answer) == float(same)


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)])
def test_vqas_official_accuracy_of_ten_annotators(matches: int, accuracy: float):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy_of("Red.", answers) == pytest.approx(accuracy)


def test_saying_nothing_is_wrong_even_where_annotators_did():
    assert vqa_accuracy_of(" ", [""] * 10) == 0.0
    assert vqa_accuracy_of("a", ["", "a", "the"]) == 1.0


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=10))
def test_the_accuracy_is_a_share_and_that_of_leaving_one_out(answer: str, answers: list[str]):
    accuracy = vqa_accuracy_of(answer, answers)
    assert 0.0 <= accuracy <= 1.0
    if len(answers) == 10 and answer.strip():
        from das_gym.tasks.vqa.accuracy import normalize_answer

        hits = [normalize_answer(other) == normalize_answer(answer) for other in answers]
        assert accuracy == pytest.approx(sum(min((sum(hits) - hit) / 3, 1.0) for hit in hits) / 10)


@pytest.mark.parametrize(
    ("generated", "chosen"),
    [
        ("B", "B"),
        (" b\n", "B"),
        ("A", "A"),
        ("a", "A"),
        ("(C)", "C"),
        ("C.", "C"),
        ("D. a dog", "D"),
        ("(D) a dog", "D"),
        ("A: because", "A"),
        ("The answer is C.", "C"),
        ("Answer: D", "D"),
        ("The correct option is (B), a dog", "B"),
        ("E", None),
        ("E. a dog", None),
        ("A dog", None),
        ("a dog", None),
        ("A or B", None),
        ("Because of it", None),
        ("", None),
    ],
)
def test_letters(generated: str, chosen: str | None):
    assert chosen_option(generated, LETTERED) == chosen


@pytest.mark.parametrize(
    ("generated", "chosen"),
    [
        ("Bare Land.", "bare land"),
        ("It is bare land", "bare land"),
        ("land", "land"),
        ("The airport", "airport"),
        ("an airport or bare land", None),
        ("landing strip", None),
        ("railway", None),
        ("", None),
        ("the", None),
    ],
)
def test_options_in_words(generated: str, chosen: str | None):
    assert chosen_option(generated, CLASSES) == chosen


@pytest.mark.parametrize(
    ("generated", "chosen"), [("True", "true"), ("false.", "false"), ("It is true.", "true"), ("yes", None), ("no", None)]
)
def test_true_and_false(generated: str, chosen: str | None):
    assert chosen_option(generated, ("true", "false")) == chosen


@given(TEXTS, st.sampled_from((LETTERED, CLASSES, ("true", "false"))))
def test_what_is_chosen_is_an_option(generated: str, options: tuple[str, ...]):
    assert chosen_option(generated, options) in (None, *options)
    for option in options:
        assert chosen_option(option, options) == option


def example(**fields: object) -> AnswerExample:
    return AnswerExample(**{"key": "k", "images": (), "question": "?", "answer": "red", **fields})  # type: ignore[arg-type]


def test_a_score_is_of_options_of_annotators_or_of_the_reference():
    assert score_answer(example(answer="B", options=LETTERED), "B. red") == 1.0
    assert score_answer(example(answer="B", options=LETTERED), "red") == 0.0
    assert score_answer(example(answers=("red", "red", *["blue"] * 8)), "Red") == pytest.approx(0.6)
    assert score_answer(example(), "the Red") == 1.0
    assert score_answer(example(), "blue") == 0.0


def test_the_reference_itself_is_right():
    for fields in ({}, {"answers": ("red",) * 10}, {"options": ("red", "blue")}, {"answer": "A", "options": LETTERED}):
        asked = example(**fields)
        assert score_answer(asked, asked.answer) == 1.0


def test_a_summary_over_all_and_by_kind():
    examples = [example(kind=kind) for kind in ("OPEN", "CLOSED", "OPEN", "")]
    summary = summary_by_kind(examples, [1.0, 0.5, 0.0, 0.0])
    assert summary == {"overall": 0.375, "kind/CLOSED": 0.5, "kind/OPEN": 0.5}
    assert next(iter(summary)) == "overall"
    assert summary_by_kind([example()], [0.25]) == {"overall": 0.25}


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.floats(0, 1)), min_size=1))
def test_means_are_within_the_scores(pairs: list[tuple[str, float]]):
    summary = summary_by_kind([example(kind=kind) for kind, _ in pairs], [score for _, score in pairs])
    scores = [score for _, score in pairs]
    assert all(min(scores) - 1e-9 <= value <= max(scores) + 1e-9 for value in summary.values())


@pytest.mark.parametrize(("count", "scores"), [(0, []), (2, [1.0])])
def test_a_summary_needs_a_score_for_each(count: int, scores: list[float]):
    with pytest.raises(ValueError, match=rf"{count} examples with {len(scores)} scores; pass one or more, and a score for"):
        summary_by_kind([example()] * count, scores)
