"""Conversations about images: what every reader of a folder makes first, how they are divided, and their examples.

Whole images are kept from training to score masks on, and so are all that images share a conversation with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from das_gym.data.checks import BadExamples
from das_gym.data.images import ImageSource
from das_gym.data.splits import Mapped, Splits, hash_order, linked_groups, share_of
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.prompts import IMAGE_MARK

REWARD_SHARE = 0.1
"""Share of the images of train that score masks, where no file is for that."""

TEST_SHARE = 0.1
"""Share of the images that are reported, where there is one file for all."""

VALIDATION_REWARD_SHARE = 0.5
"""Share of the images of a validation file that score masks, where it has to serve for another split besides."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers about the same images.

    Attributes:
        where: File and entry, for errors.
        key: Tells it from every other of its data set.
        images: The pictures, in the order of the marks `<image>` of all rounds.
        names: What the data set calls each of them, wherever the folder lies.
        rounds: Question and answer of each round, one or more.
        options: What the answers are chosen from; empty = anything.
        kind: The data set's own group.
    """

    where: str
    key: str
    images: tuple[ImageSource, ...]
    names: tuple[str, ...]
    rounds: tuple[tuple[str, str], ...]
    options: tuple[str, ...] = ()
    kind: str = ""


Conversations = Sequence[Conversation]


def examples_of(conversations: Conversations) -> Mapped[AnswerExample]:
    """An example for each round, with the rounds before it."""
    return Mapped([(c, number) for c in conversations for number in range(len(c.rounds))], _example)


def _example(item: tuple[Conversation, int]) -> AnswerExample:
    conversation, number = item
    question, answer = conversation.rounds[number]
    marks = sum(asked.count(IMAGE_MARK) for asked, _ in conversation.rounds[: number + 1])
    marked = any(IMAGE_MARK in asked for asked, _ in conversation.rounds)
    return AnswerExample(
        key=conversation.key if len(conversation.rounds) == 1 else f"{conversation.key}#{number + 1}",
        images=conversation.images[:marks] if marked else conversation.images,
        question=question,
        answer=answer,
        options=conversation.options,
        rounds=conversation.rounds[:number],
        kind=conversation.kind,
    )


def drop_broken(conversations: Conversations, bad: BadExamples) -> list[Conversation]:
    """The conversations whose images can be used; the others are left out or raise."""
    return bad.drop_broken(
        conversations,
        images=lambda conversation: conversation.images,
        name=lambda conversation: conversation.where,
        size=lambda conversation: len(conversation.rounds),
    )


def divided(parts: Mapping[str, Conversations], source: str, bad: BadExamples) -> Splits[AnswerExample]:
    """The three splits of a data set, no image in two of them.

    The files decide where they can: train trains, val scores masks, test is reported. Where one of them is missing, whole
    images of another take its place, chosen by the hash of the data set's own names for them, so that it is the same for
    ever: a tenth of train for a missing val; half of val for a missing train or test; where there is one file, a tenth of
    the images each.

    Args:
        parts: Conversations of `train`, `val` and `test`, or one part of any name.
        source: Names the data in errors.
        bad: Told of conversations that are left out because another part has their images.

    Raises:
        ValueError: There are too few images to divide; or, with the policy `raise`, two parts share images.
    """
    whole = next(iter(parts.values())) if len(parts) == 1 else ()
    train, val, test = _disjoint([parts.get(name, ()) for name in ("train", "val", "test")], bad)
    reward: Conversations = val
    if whole:
        (test, reward), train = _taken(whole, (TEST_SHARE, REWARD_SHARE), source, bad)
    elif not val:
        (reward,), train = _taken(train, (REWARD_SHARE,), source, bad)
    elif not test:
        (reward,), test = _taken(val, (VALIDATION_REWARD_SHARE,), source, bad)
    elif not train:
        (reward,), train = _taken(val, (VALIDATION_REWARD_SHARE,), source, bad)
    return Splits(examples_of(train), examples_of(reward), examples_of(test), bad.lines, bad.count)


def _taken(
    conversations: Conversations, shares: Sequence[float], source: str, bad: BadExamples
) -> tuple[list[list[Conversation]], list[Conversation]]:
    """So much of the groups of images for each share, and what is left."""
    groups = group_names(conversations)
    order = hash_order(groups)
    if len(order) <= len(shares):
        raise ValueError(
            f"{source}: its {len(conversations)} conversations are about {len(order)} different images, or groups of images "
            f"that occur together, and whole ones are kept apart to score masks on and to report, so there must be "
            f"{len(shares) + 1} or more: add conversations about others{bad.first_left_out}"
        )
    taken, start = [], 0
    for share in shares:
        end = start + share_of(share, len(order))
        taken.append(_of_groups(conversations, groups, frozenset(order[start:end])))
        start = end
    return taken, _of_groups(conversations, groups, frozenset(order[start:]))


def _of_groups(conversations: Conversations, groups: Sequence[str], chosen: Collection[str]) -> list[Conversation]:
    return [c for c, group in zip(conversations, groups, strict=True) if group in chosen]


def group_names(conversations: Conversations) -> list[str]:
    """For each conversation a name that all with one of its images have too: the least of what its images are called.

    Without images, the first question stands for them.
    """
    linked = linked_groups([[i.key for i in c.images] or [c.rounds[0][0]] for c in conversations])
    least: dict[int, str] = {}
    for conversation, group in zip(conversations, linked, strict=True):
        name = min(conversation.names, default=conversation.rounds[0][0])
        least[group] = min(name, least.get(group, name))
    return [least[group] for group in linked]


def _disjoint(parts: Sequence[Conversations], bad: BadExamples) -> list[Conversations]:
    """The parts, of which an earlier one loses the conversations about images that a later one has."""
    kept: list[Conversations] = list(parts)
    for later in range(len(parts) - 1, 0, -1):
        where_of = {image.key: c.where for c in kept[later] for image in c.images}
        for earlier in range(later):
            kept[earlier] = _without(kept[earlier], where_of, bad)
    return kept


def _without(part: Conversations, where_of: Mapping[str, str], bad: BadExamples) -> Conversations:
    """The conversations about none of the images, which another part has."""
    shared = [next((image.key for image in c.images if image.key in where_of), None) for c in part]
    if not any(shared):
        return part
    images = len({key for key in shared if key})
    for conversation, key in zip(part, shared, strict=True):
        if key:
            counted = f" (as it is with {images} images)" if images > 1 and not bad.skips else ""
            bad.report(
                ValueError(
                    f"{conversation.where} is about {key}, and so is {where_of[key]}{counted}; no image may be in two "
                    "splits: take it out of one of the files, or put all in one file to have it divided"
                ),
                len(conversation.rounds),
            )
    kept = [conversation for conversation, key in zip(part, shared, strict=True) if not key]
    bad.require(kept, f"what {part[0].where.partition(': ')[0]} holds besides the images of the other files")
    return kept


def check_options(answer: str, options: Sequence[str], where: str) -> None:
    """Refuse options that are no choice, or that the answer is not among.

    Raises:
        ValueError: Says which.
    """
    if len(options) < 2 or len(set(options)) < len(options):
        raise ValueError(f"{where} has the options {options!r:.80}; it needs two or more, each once")
    if answer not in options:
        raise ValueError(f"{where} has the answer {answer!r:.60}, which is not among its options {options!r:.80}")
