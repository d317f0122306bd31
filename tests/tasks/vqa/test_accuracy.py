"""VQA's normalization and accuracy, against values worked out by hand from the official rules."""

import pytest

from das_gym.tasks.vqa.accuracy import normalize_answer, soft_score, vqa_accuracy

NORMALIZED = {
    "Yes": "yes",
    "  a  red\tball\n": "red ball",
    "The two dogs!": "2 dogs",
    "Anna": "anna",  # an article only as a separate word
    "the": "",
    "none": "0",
    "it isnt": "it isn't",
    "couldntve": "couldntve",  # the official table has it with one apostrophe missing, not with two
    "couldnt've": "couldn't've",
    "somebody'd": "somebodyd",  # as odd as the official table
    "shes": "shes",
    "Im": "im",  # the official table has Im with a capital, which nothing in lower case matches
    "2:50 pm": "2:50 pm",
    "yes/no": "yes no",
    "yes / no": "yes no",
    "t-shirt": "t shirt",
    "t-shirt -": "tshirt",  # a mark that touches a space is removed everywhere without one
    "100,978 t-shirts": "100978 tshirts",  # with a comma in a number no mark leaves a space
    "3.5": "3.5",
    "3.": "3",
    "St. John": "st john",
    "u.s.a.": "usa",
    "one-two": "1 2",
}


@pytest.mark.parametrize("raw", NORMALIZED)
def test_normalize_answer(raw):
    assert normalize_answer(raw) == NORMALIZED[raw]
    assert normalize_answer(NORMALIZED[raw]) == NORMALIZED[raw]


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_score_and_accuracy_of_ten_annotators(matches: int, accuracy: float):
    # e.g. 3 matches: 3 times 2 of the other nine -> 2/3, 7 times 3 of nine -> 1; (3 * 2/3 + 7) / 10 = 0.9
    answers = ["red"] * matches + [f"other{n}" for n in range(10 - matches)]
    assert vqa_accuracy("red", answers) == pytest.approx(accuracy, abs=1e-12)
    assert soft_score(matches) == accuracy


@pytest.mark.parametrize("n_annotators", [2, 5, 10])
def test_vqa_accuracy_is_the_leave_one_out_mean(n_annotators):
    for matches in range(n_annotators):
        answers = ["red"] * matches + ["blue"] * (n_annotators - matches)
        others = [answers[:i] + answers[i + 1 :] for i in range(n_annotators)]
        official = sum(min(each.count("red") / 3, 1) for each in others) / n_annotators
        assert vqa_accuracy("red", answers) == pytest.approx(official, abs=1e-12)


@pytest.mark.parametrize("answers", [[], "red"])
def test_vqa_accuracy_rejects_what_is_no_list(answers):
    with pytest.raises(ValueError, match="`answers`"):
        vqa_accuracy("red", answers)
