"""What a downstream task offers to the rest of das_gym."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from das_gym.data.images import ImageSource
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair, Processor

PARTS = ("train", "reward", "test")
"""What every data set is divided into."""


class Example(Protocol):
    """Something to be scored; `key` tells it from every other example of its data set."""

    @property
    def key(self) -> str:
        """Unique in the data set."""
        ...


@dataclass(frozen=True)
class Gallery:
    """Images and texts that are ranked against each other.

    Attributes:
        images: The images.
        texts: The texts.
        image_of_text: (n_texts,) int64, the index of each text's image; every image has a text.
    """

    images: tuple[ImageSource, ...]
    texts: tuple[str, ...]
    image_of_text: np.ndarray


class Task(ABC):
    """Data, a head on the pooled features, its loss and its metric, and how examples become what a VLP reads.

    Args:
        processor: Makes batches for the VLP.
        labels: What the head's logits stand for, where that depends on the data: VQA's answers.

    Attributes:
        name: How adaptation files and settings name it.
        metric_name: What `metrics` measures.
        passes: How many pairs an example takes.
        pretrained_head: What checkpoints call the head that the task begins from, or None.
        reward_examples: How many examples score a mask, unless a person asks for another number.
    """

    name: ClassVar[str]
    metric_name: ClassVar[str] = "accuracy"
    passes: ClassVar[int] = 1
    pretrained_head: ClassVar[str | None] = None
    reward_examples: ClassVar[int] = 500

    def __init__(self, processor: Processor, labels: Sequence[str] = ()) -> None:
        self.processor = processor
        self.labels = tuple(labels)

    @property
    def logit_names(self) -> tuple[str, ...]:
        """What the logits stand for, in words; empty where they have no names."""
        return self.labels

    @classmethod
    @abstractmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[Any]:
        """The examples of a data set in the task's format; None is the bundled one.

        Args:
            data_root: Folder of the data set, or one of its arrow tables.
            on_bad_example: `raise`, or `skip`: leave bad examples out and tell of them in `Splits.left_out`; then every
                image is decoded once, to see that it can be.

        Raises:
            ValueError, FileNotFoundError: names the file and the entry.
        """

    @classmethod
    def load_part(cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise") -> Sequence[Any]:
        """One part of a data set: `train`, `reward`, `test`, or, where a task knows them, the format's own parts.

        Raises:
            ValueError: no such part.
        """
        if part not in PARTS:
            raise ValueError(f"split={part!r} is none of {', '.join(PARTS)}")
        examples: Sequence[Any] = getattr(cls.load_splits(data_root, on_bad_example), part)
        return examples

    @classmethod
    def is_labelled(cls, examples: Sequence[Any]) -> bool:
        """Whether the right answers to a part are known."""
        del examples
        return True

    @classmethod
    def examples_for_pairs(cls, pairs: int) -> int:
        """How many examples, at least 1, come to no more than so many pairs: what a batch costs."""
        return max(pairs // cls.passes, 1)

    @classmethod
    def choose_labels(cls, splits: Splits[Any], min_count: int | None = None) -> tuple[str, ...]:
        """The labels that a data set asks for: none, unless a task says otherwise."""
        del splits, min_count
        return ()

    @abstractmethod
    def pairs(self, examples: Sequence[Any]) -> list[Pair]:
        """`len(examples) * passes` rows for the VLP, example by example."""

    def group_features(self, pooled: Tensor) -> Tensor:
        """What the head reads.

        Args:
            pooled: (batch * passes, feature_size) pooled features, example by example.

        Returns:
            The same for one pass, (batch, passes, feature_size) for more, unless a task says otherwise.
        """
        return pooled if self.passes == 1 else pooled.unflatten(0, (-1, self.passes))

    @abstractmethod
    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """What loss and metric compare logits with."""

    @abstractmethod
    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """A new head from what `group_features` gives to logits.

        Args:
            feature_size: Width of the pooled features of one pass.
            head_size: Width inside, where the head has an inside; None is `feature_size`.
        """

    def init_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:  # noqa: B027 - may stay empty
        """Start a new head from heads that came with the checkpoint, by name, where one of them fits the task.

        `load_head` does so, and warns where the shapes do not fit.
        """

    @abstractmethod
    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) loss of each example, in nats."""

    def matching_loss(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """The image-text-matching loss that training may add to that of the task.

        Args:
            heads: The heads that came with the checkpoint, by name, as for `start_head`.

        Returns:
            From (batch * passes, feature_size) pooled features, example by example, to (batch,) losses in nats.

        Raises:
            ValueError: the task has no such loss, or the checkpoint no head for it.
        """
        del heads
        raise ValueError(f"itm_weight is above 0, and {self.name} has no image-text-matching loss: leave itm_weight out")

    @abstractmethod
    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) metric of each example, 0..1, larger is better."""

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """(batch,) KL(full model || subnet) of the softmax over logits, in nats, 0 or more."""
        del targets
        wanted, given = full_logits.log_softmax(-1), logits.log_softmax(-1)
        return (wanted.exp() * (wanted - given)).sum(-1)

    def predictions(self, examples: Sequence[Any], logits: Tensor) -> list[dict[str, Any]]:
        """What a model answers to a batch, an object of plain JSON values an example, as the task's server takes it.

        Args:
            examples: The batch.
            logits: As for `losses`.
        """
        chosen = logits.ndim > 1 and len(logits) == len(examples)
        numbers = logits.flatten(1).argmax(-1).tolist() if chosen else [None] * len(examples)
        return [{"key": e.key, "prediction": number} for e, number in zip(examples, numbers, strict=True)]

    def generation_prompt(self, example: Any) -> Any:
        """What a model that answers in words of its own is asked; None where it chooses, see `predictions`."""
        del example
        return None

    def format_generated(self, example: Any, text: str) -> dict[str, Any]:
        """A model's answer in words to what `asked` asks, as `predictions` has those that were chosen.

        Raises:
            TypeError: the task is not answered in words.
        """
        raise TypeError(f"{self.name} is not answered in words of the model's own: {text!r} is no answer to {example!r}")

    def question(self, example: Any) -> str:
        """What an example asks, for people to read: the text of its first pair, unless a task says otherwise."""
        return self.pairs([example])[0].text

    def reference(self, example: Any) -> str:
        """The right answer to an example in words; empty where nobody knows it, or a task does not say."""
        del example
        return ""

    def format_prediction(self, example: Any, prediction: Mapping[str, Any]) -> str:
        """What a model answered to an example in words: its entry of `predictions`, empty where that says nothing."""
        del example
        answer, names = prediction.get("prediction"), self.logit_names
        if isinstance(answer, int) and 0 <= answer < len(names):
            return names[answer]
        return "" if answer is None else str(answer)

    def group(self, example: Any) -> str:
        """The data set's own group of an example, such as a type of questions; empty where it has none."""
        del example
        return ""

    def summary(self, examples: Sequence[Any], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """What to report of a whole split: `loss` (nats), the metric by its name (0..1), and what the field adds.

        Args:
            examples: The examples.
            losses: (len(examples),) float, nats.
            metrics: (len(examples),) float, 0..1.
        """
        del examples
        return {self.metric_name: float(metrics.mean()), "loss": float(losses.mean())}

    def open_ended(self, examples: Sequence[Any]) -> list[Any]:
        """The examples with nothing to choose from: each is one pair, and what a model says to it is free.

        Raises:
            TypeError: the task is not answered in words.
        """
        raise TypeError(f"{self.name} is not answered in words of the model's own: nothing can be generated for it")

    def score_text(self, example: Any, text: str) -> float:
        """How right a generated text is as the answer to an example, 0..1.

        Raises:
            TypeError: the task is not answered in words.
        """
        raise TypeError(f"{self.name} is not answered in words of the model's own: {text!r} is no answer to {example!r}")

    @classmethod
    def gallery(cls, examples: Sequence[Any], max_images: int | None = None) -> Gallery | None:
        """What the evaluation of a split ranks besides, with a head of one logit a pair; None: the task ranks nothing.

        Args:
            examples: The split.
            max_images: At most so many images, from the first on; None takes all.

        Raises:
            ValueError: `max_images` is less than 1.
        """
        del examples, max_images
        return None

    def order(self, examples: Sequence[Any]) -> np.ndarray:
        """(len(examples),) int64: an order that mixes the examples, the same on every machine; the first of it are used."""
        return np.random.default_rng(0).permutation(len(examples))

    def covers_labels(self, examples: Sequence[Any]) -> bool:
        """Whether these labels can say anything about the examples."""
        del examples
        return True


def check_task(task: object, name: str) -> None:
    """Refuse what cannot be the task of that name.

    Raises:
        TypeError: it is no class of tasks, or lacks something; the text names all of it.
    """
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"task={task!r} is no class of tasks; give a subclass of das_gym.Task, or its 'module:name'")
    lacks = [*([] if getattr(task, "name", None) == name else [f"name = {name!r}"]), *sorted(task.__abstractmethods__)]
    if lacks:
        raise TypeError(f"{task.__name__} cannot be the task {name!r}: it lacks {', '.join(lacks)}; see das_gym.Task")


def load_head(head: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Start a head from one that came with the checkpoint; warns, and leaves it as it is, where the shapes do not fit.

    Args:
        head: A new head.
        name: What the checkpoint calls its own.
        tensors: That one's, by their names in `head`.
    """
    shapes, theirs = ({key: tuple(t.shape) for key, t in some.items()} for some in (head.state_dict(), tensors))
    if shapes == theirs:
        head.load_state_dict(dict(tensors))
        return
    odd = next(key for key in (*shapes, *theirs) if shapes.get(key) != theirs.get(key))
    warnings.warn(
        f"the head begins untrained: the checkpoint's {name} has {odd} of shape {theirs.get(odd)}, this task's of "
        f"{shapes.get(odd)}",
        stacklevel=2,
    )
