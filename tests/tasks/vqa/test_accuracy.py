"""VQA's normalisation and accuracy, against values worked out by hand from the official rules."""

from __future__ import annotations

import pytest

from das_gym.tasks.vqa.accuracy import CONTRACTIONS, NUMBER_WORDS, PUNCTUATION, normalize_answer, soft_score, vqa_accuracy


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Yes", "yes"),
        ("  a  red\tball\n", "red ball"),
        ("The two dogs!", "2 dogs"),
        ("an apple", "apple"),
        ("Anna", "anna"),  # an article only as a word of its own
        ("the", ""),
        ("", ""),
        ("none", "0"),
        ("Zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("someone", "someone"),
        ("dont", "don't"),
        ("it isnt", "it isn't"),
        ("couldntve", "couldntve"),  # the official table has it with one apostrophe missing, not with two
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # as odd as the official table
        ("shes", "shes"),
        ("its", "its"),
        ("Im", "im"),  # the official table has Im with a capital, which nothing in lower case meets
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("yes/no", "yes no"),
        ("yes / no", "yes no"),
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt"),  # a mark that touches a space goes everywhere without one
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("100,978", "100978"),
        ("100,978 t-shirts", "100978 tshirts"),  # with a comma in a number no mark leaves a space
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.", "3"),
        ("St. John", "st john"),
        ("u.s.a.", "usa"),
        ("1.000.000", "1.000.000"),
        ("what?!", "what"),
        ("(maybe)", "maybe"),
        ("one-two", "1 2"),
    ],
)
def test_normalisation(raw: str, normal: str):
    assert normalize_answer(raw) == normal
    assert normalize_answer(normal) == normal


@pytest.mark.parametrize("mark", PUNCTUATION)
def test_every_mark_is_taken_out(mark: str):
    assert normalize_answer(f"red{mark}dog") == "red dog"
    assert normalize_answer(f"red {mark}dog") == "red dog"


def test_tables_are_whole():
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert [NUMBER_WORDS[word] for word in words] == [str(number) for number in range(11)]
    assert len(NUMBER_WORDS) == 12  # and none
    assert len(CONTRACTIONS) == 114
    for spelt, right in CONTRACTIONS.items():
        assert spelt.replace("'", "") == right.replace("'", "")
        assert normalize_answer(spelt) == normalize_answer(normalize_answer(spelt)) == right


@pytest.mark.parametrize(("count", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_score(count: int, score: float):
    assert soft_score(count) == score


def test_soft_score_refuses_a_negative_count():
    with pytest.raises(ValueError, match=r"count=-1 annotators; a count is 0 or more"):
        soft_score(-1)


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)])
def test_accuracy_of_ten_annotators(matches: int, accuracy: float):
    # e.g. 3 matches: 3 times 2 of the other nine -> 2/3, 7 times 3 of nine -> 1; (3 * 2/3 + 7) / 10 = 0.9
    answers = ["red"] * matches + [f"other{n}" for n in range(10 - matches)]
    assert vqa_accuracy("red", answers) == pytest.approx(accuracy, abs=1e-12)


def leave_one_out(answer: str, answers: list[str]) -> float:
    """The official formula, spelt out."""
    scores = [min(sum(a == answer for a in answers[:i] + answers[i + 1 :]) / 3, 1) for i in range(len(answers))]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("n_annotators", [2, 3, 4, 5, 10, 12])
def test_accuracy_is_the_leave_one_out_mean_for_any_number_of_annotators(n_annotators: int):
    for matches in range(n_annotators):
        answers = ["red"] * matches + ["blue"] * (n_annotators - matches)
        assert vqa_accuracy("red", answers) == pytest.approx(leave_one_out("red", answers), abs=1e-12)


@pytest.mark.parametrize("n_annotators", [1, 2, 3, 10])
def test_unanimous_annotators_are_right_however_few(n_annotators: int):
    assert vqa_accuracy("red", ["red"] * n_annotators) == 1.0
    assert vqa_accuracy("blue", ["red"] * n_annotators) == 0.0


def test_accuracy_normalises_both_sides():
    assert vqa_accuracy("The Two", ["2"] * 4 + ["two!"] * 6) == 1.0


def test_unanimous_answers_are_compared_as_they_stand():
    """The official script normalises nothing where all annotators wrote the same."""
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy(" two\n", ["two"] * 9 + ["\ttwo"]) == 1.0
    assert vqa_accuracy("2", ["two"] * 9 + ["Two"]) == 1.0


def test_accuracy_refuses_what_is_no_list_of_answers():
    with pytest.raises(ValueError, match=r"answers is empty; pass every annotator's answer, at least one"):
        vqa_accuracy("red", [])
    with pytest.raises(TypeError, match=r"answers='red' is one string; pass a list"):
        vqa_accuracy("red", "red")
