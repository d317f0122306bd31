"""Questions to a model that answers in words, the conversations that they are parts of, and how these are divided.

Readers of folders build conversations first. Whole images, with all conversations about them, are kept from training for
the reward split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from das_gym.data.entries import BadExamples
from das_gym.data.images import ImageSource
from das_gym.data.splits import FILE_PARTS, LazySequence, Splits, content_keys, fill_parts, linked_groups, split_off

IMAGE_MARK = "<image>"
"""Stands in a text where an image does. Source: LLaVA's conversations."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Source: LLaVA-1.5 (arXiv 2310.03744), section 3.2."""

LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""Source: LLaVA-1.5, appendix; its form of multiple choice."""

TRUE_OR_FALSE = "Is this true of the two images? Answer with true or false."

CLASS_QUESTION = "What is the label for this image?"
"""The question of the reference about every image of AID."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """A question about some images, or about none, with the right answer.

    Attributes:
        key: A name that is unique in the data set.
        images: The images, in the order of the `<image>` marks of `rounds` and `question`; those without a mark come first.
        question: The last message of the user.
        answer: The reference answer, whose likelihood is the loss; empty where it is not public.
        answers: Every annotator's answer, all of which count; empty = `answer` alone.
        options: The answers to choose from; empty = any answer.
        rounds: Earlier questions and answers of the same conversation.
        kind: The data set's own group, such as `count` or `CLOSED`; may be empty.
        question_id: The number of the question on the data set's evaluation server, if any.
        is_cut: Whether `answer` was generated and cut off, so that no end token follows.
    """

    key: str
    images: tuple[ImageSource, ...]
    question: str
    answer: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rounds: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    question_id: int | str | None = None
    is_cut: bool = False


def add_instruction(question: str, instruction: str = SHORT_ANSWER) -> str:
    """Return a question with an instruction on a new line."""
    return f"{question.strip()}\n{instruction}"


def multiple_choice(question: str, context: str, choices: Sequence[str]) -> str:
    """Return a question with its context (`N/A` if empty, as is usual) and its first 26 choices, lettered."""
    lettered = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return add_instruction(f"{question.strip()}\nContext: {context.strip() or 'N/A'}\nOptions: {lettered}", LETTER_ANSWER)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers about the same images; see `AnswerExample` for what is not here.

    Attributes:
        where: File and entry, for errors.
        names: The data set's own name of each image, which does not depend on the folder.
        rounds: Question and answer of each round, one or more.
        answers: Every annotator's answer to a single round; empty = its answer alone.
    """

    where: str
    key: str
    images: tuple[ImageSource, ...]
    names: tuple[str, ...]
    rounds: tuple[tuple[str, str], ...]
    options: tuple[str, ...] = ()
    kind: str = ""
    answers: tuple[str, ...] = ()


Conversations = Sequence[Conversation]


def examples_by_round(conversations: Conversations) -> LazySequence[AnswerExample]:
    """Return an example for each round, with the rounds before it."""
    return LazySequence([(c, number) for c in conversations for number in range(len(c.rounds))], _example)


def _example(item: tuple[Conversation, int]) -> AnswerExample:
    conversation, number = item
    question, answer = conversation.rounds[number]
    questions = [text for text, _ in conversation.rounds]
    marks = sum(text.count(IMAGE_MARK) for text in questions[: number + 1])
    return AnswerExample(
        key=conversation.key if len(questions) == 1 else f"{conversation.key}#{number + 1}",
        images=conversation.images[:marks] if any(IMAGE_MARK in text for text in questions) else conversation.images,
        question=question,
        answer=answer,
        answers=conversation.answers,
        options=conversation.options,
        rounds=conversation.rounds[:number],
        kind=conversation.kind,
    )


def drop_broken(conversations: Conversations, source: str, bad: BadExamples) -> list[Conversation]:
    """Return the conversations whose images can be used; see `BadExamples.drop_broken`."""
    return bad.drop_broken(conversations, source, lambda c: c.where.removeprefix(f"{source}: "))


def divide(
    parts: Mapping[str, Conversations], source: str, bad: BadExamples, published: bool = False
) -> Splits[AnswerExample]:
    """Return the three splits of a data set, with no image in two of them.

    Train is for training, val is the reward split, test is the test split; where one is missing, see `fill_parts`. Whole
    images go together, chosen by the hash of the data set's own names for them, so that they never change.

    `parts` are `train`, `val` and `test`, or one of any name; `bad` receives conversations about an image that another part
    has. Parts that are `published` stay as they are, so that numbers are comparable: a warning tells how many images they
    share.
    """
    contents = content_keys(image for part in parts.values() for c in part for image in c.images)
    if len(parts) > 1 and not published:
        kept = _disjoint([parts.get(name, ()) for name in FILE_PARTS], contents, bad)
        parts = dict(zip(FILE_PARTS, kept, strict=True))
    train, reward, test = fill_parts(parts, partial(_split_off, source=source, contents=contents, bad=bad))
    asked = attrgetter("rounds", "question", "options")
    return bad.splits(examples_by_round(train), examples_by_round(reward), examples_by_round(test), asked, contents)


def _split_off(
    conversations: Conversations, shares: Sequence[float], source: str, contents: Mapping[str, str], bad: BadExamples
) -> tuple[list[list[Conversation]], list[Conversation]]:
    groups = group_names(conversations, contents)
    found = split_off(conversations, groups, shares)
    if found is None:
        raise ValueError(
            f"{source}: too few images to divide: got {len(set(groups))} groups of images that occur together in "
            f"{len(conversations)} conversations, expected {len(shares) + 1} or more{bad.last_skipped}"
        )
    return found


def group_names(conversations: Conversations, contents: Mapping[str, str]) -> list[str]:
    """Return the group of each conversation: the least name of its linked images, or its first question without any."""
    linked = linked_groups([[contents[image.key] for image in c.images] or [c.rounds[0][0]] for c in conversations])
    # Of a group, the least name decides where it goes: it depends neither on the order of entries nor on the folder.
    least: dict[int, str] = {}
    for conversation, group in zip(conversations, linked, strict=True):
        name = min(conversation.names, default=conversation.rounds[0][0])
        least[group] = min(name, least.get(group, name))
    return [least[group] for group in linked]


def _disjoint(parts: Sequence[Conversations], contents: Mapping[str, str], bad: BadExamples) -> list[Conversations]:
    kept: list[Conversations] = list(parts)
    # Test decides what is reported, reward which mask is chosen: neither may lose examples to train.
    for later in range(len(parts) - 1, 0, -1):
        where_of = {contents[image.key]: (image.key, c.where) for c in kept[later] for image in c.images}
        for earlier in range(later):
            before = kept[earlier]
            left = []
            for conversation in before:
                shared = next((image.key for image in conversation.images if contents[image.key] in where_of), None)
                if shared is None:
                    left.append(conversation)
                    continue
                other, where = where_of[contents[shared]]
                name = shared if shared == other else f"{shared}, whose content is that of {other},"
                error = ValueError(f"{conversation.where} shares an image with another split: {name} is in {where}")
                bad.report(error)
            if before:
                bad.require(left, before[0].where.partition(": ")[0])
            kept[earlier] = left
    return kept


def check_options(answer: str, options: Sequence[str], where: str) -> None:
    """Raise ValueError for fewer than two distinct options, or an answer that is not among them."""
    if len(options) < 2 or len(set(options)) < len(options):
        raise ValueError(f"{where}: wrong `options`: got {options!r:.80}, expected two or more different ones")
    if answer not in options:
        raise ValueError(
            f"{where}: the answer is not among the options: got {answer!r:.60}, expected one of {options!r:.80}"
        )
