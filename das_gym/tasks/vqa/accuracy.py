"""VQA's official answer normalization, soft scores and accuracy.

Source: the evaluation rules at visualqa.org/evaluation.html, and the behaviour of the official evaluation
script where it differs from them (each such place is named below).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})

_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_ZERO_TO_TEN)}

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""All that is taken out. Not the apostrophe (girl's) and the colon (2:50 pm); the period has its own rule."""

_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've
"""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FREE_PERIOD = re.compile(r"\.(?!\d)")


def _contractions() -> dict[str, str]:
    table = {}
    for word in _CONTRACTED.split():
        for place in (i for i, letter in enumerate(word) if letter == "'"):
            table[word[:place] + word[place + 1 :]] = word
    # The official table spells this one the other way round, and leaves shes, lets, im and ive alone.
    return table | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()
"""`dont` -> `don't`, and the others of the official table."""


def _strip_punctuation(text: str) -> str:
    """Replace punctuation by a space, or by nothing where it touches one: `yes, sir` and `yes/sir` are both two words.

    As in the official script, a mark that touches a space anywhere goes everywhere without a space, and so do all
    marks of a text that has a comma inside a number (`100,978`); a period stays in front of a digit only (`.5`, `3.5`).
    """
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        if mark in text:
            touches_space = f"{mark} " in text or f" {mark}" in text
            stripped = stripped.replace(mark, "" if touches_space or comma_in_number else " ")
    return _FREE_PERIOD.sub("", stripped)


@lru_cache(maxsize=65536)
def strip_whitespace(text: str) -> str:
    """Return an answer with single-line, stripped white space: the form in which unanimous answers are compared."""
    return re.sub(r"[\n\t]", " ", text).strip()


@lru_cache(maxsize=65536)
def normalize_answer(text: str) -> str:
    """Return an answer as VQA compares it: `The  two dogs!` is `2 dogs`.

    It is in lower case, without punctuation and articles, with numbers up to ten as digits, apostrophes in contractions and
    single spaces. It may be empty. Normalizing twice changes nothing.
    """
    words = [NUMBER_WORDS.get(word, word) for word in _strip_punctuation(strip_whitespace(text)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_score(count: int) -> float:
    """Return METER's training target of an answer that `count` of ten annotators gave: 0, 0.3, 0.6, 0.9, 1.0 from 4 on."""
    return (0.0, 0.3, 0.6, 0.9, 1.0)[min(count, 4)]


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Return VQA's official accuracy of an answer, 0..1, given annotators' answers; ValueError without any.

    It is the mean, over leaving out one annotator at a time, of min(matches among the others / 3, 1): with ten annotators,
    1, 2, 3 and 4 matches give 0.3, 0.6, 0.9 and 1.0. The answer of unanimous annotators counts 1.0 however few they are.
    Both sides are normalized, except that the official script compares a unanimous answer as it is written: `2` is wrong
    where ten wrote `two`.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"wrong `answers`: got {answers!r}, expected a list of one or more texts")
    written = {strip_whitespace(other) for other in answers}
    if len(written) == 1:
        return float(strip_whitespace(answer) in written)
    given = normalize_answer(answer)
    matches = sum(normalize_answer(other) == given for other in answers)
    if matches == len(answers):
        return 1.0
    one_match_out = min((matches - 1) / 3, 1.0)
    another_out = min(matches / 3, 1.0)
    return (matches * one_match_out + (len(answers) - matches) * another_out) / len(answers)
