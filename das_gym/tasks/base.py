"""The interface of a downstream task, and what several tasks share: heads, losses and metrics of classes and of tokens."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.entries import BadExamples
from das_gym.data.images import ImageSource
from das_gym.data.rows import Table
from das_gym.data.splits import Splits
from das_gym.files import read_json
from das_gym.models.inputs import Pair, Processor
from das_gym.names import PARTS


@dataclass(frozen=True)
class Gallery:
    """Images and texts that are ranked against each other; (n_texts,) int64 has each text's image, and each image a text."""

    images: tuple[ImageSource, ...]
    texts: tuple[str, ...]
    image_of_text: np.ndarray


class Task(ABC):
    """Data, a head on the pooled features, its loss and its metric, and how examples become model inputs.

    An example is any object with a `key` that is unique in its data set. `examples/own_task.py` is a complete task.

    Attributes:
        processor: Makes batches for the model.
        labels: What the head's logits stand for, where that depends on the data: VQA's answers.
        name: The task's name in settings and adaptation files.
        metric_name: What `metrics` measures.
        passes: Number of text-image pairs per example, each run through the model.
        pretrained_head: The head in checkpoints from which the task's head is initialized, if any.
        reward_examples: The default number of examples that score a mask.
        generates: Whether a model generates answers to the examples, which `score_text` scores; else `metrics` scores them.
    """

    name: ClassVar[str]
    metric_name: ClassVar[str] = "accuracy"
    passes: ClassVar[int] = 1
    pretrained_head: ClassVar[str | None] = None
    reward_examples: ClassVar[int] = 500
    generates: ClassVar[bool] = False

    def __init__(self, processor: Processor, labels: Sequence[str] = ()) -> None:
        self.processor = processor
        self.labels = tuple(labels)

    @property
    def logit_names(self) -> tuple[str, ...]:
        """The names of the logits; may be empty."""
        return self.labels

    @classmethod
    @abstractmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[Any]:
        """Return the examples of a data set in the task's format.

        Args:
            data_root: Folder of the data set, or one of its arrow tables. None is the bundled data set.
            on_bad_example: `raise`; or `skip` bad examples, which decodes every image once and lists what was skipped in
                `Splits.left_out`.

        Raises:
            FileNotFoundError: A file or image does not exist; the message names file and entry.
            ValueError: A file or entry is damaged or has another format, or a split is empty or too small.
        """

    @classmethod
    def divide_rows(cls, parts: Mapping[str, Table], bad: BadExamples, **options: Any) -> Splits[Any]:
        """Return the splits of rows in memory.

        Args:
            parts: Tables of `train`, `val` and `test`; what is missing is split off from another one.
            bad: Receives bad rows.
            options: Those of `load_splits`.

        Raises:
            ValueError: The task takes no rows, or one is damaged; the message names part and row.
        """
        raise ValueError(f"the task {cls.name} reads files alone. Use Problem.from_pretrained(..., data_root=FOLDER)")

    @classmethod
    def read_rows(cls, table: Table, bad: BadExamples, **options: Any) -> Sequence[Any]:
        """Return the examples of rows in memory, all in order; arguments and errors are those of `divide_rows`."""
        raise ValueError(
            f"the task {cls.name} reads no rows in memory: give its examples, such as problem.splits.test[:100]"
        )

    @classmethod
    def load_part(
        cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise", **options: Any
    ) -> Sequence[Any]:
        """Return the examples of `train`, `reward`, `test` or, in some formats, an official part; ValueError for others."""
        if part not in PARTS:
            raise ValueError(f"unknown `split`: got {part!r}, expected {', '.join(PARTS)}")
        return getattr(cls.load_splits(data_root, on_bad_example, **options), part)

    @classmethod
    def format_of(cls, root: Path) -> str:
        """Return the name of the task's data format that the files of a folder match; empty if none matches."""
        return ""

    @classmethod
    def is_labelled(cls, examples: Sequence[Any]) -> bool:
        """Return True if the right answers to all examples are known; by default always."""
        return True

    @classmethod
    def examples_for_pairs(cls, pairs: int) -> int:
        """Return how many examples, at least 1, make a batch of at most `pairs` pairs."""
        return max(pairs // cls.passes, 1)

    @classmethod
    def choose_labels(cls, splits: Splits[Any], min_count: int | None = None) -> tuple[str, ...]:
        """Return the labels for a data set, those that occur `min_count` times or more; by default, a task has none."""
        return ()

    @abstractmethod
    def pairs(self, examples: Sequence[Any]) -> list[Pair]:
        """Return `len(examples) * passes` text-image pairs, example by example."""

    def group_features(self, pooled: Tensor) -> Tensor:
        """Return the input of the head, given the (batch * passes, feature_size) pooled features, example by example.

        By default the same for one pass, (batch, passes, feature_size) for more.
        """
        return pooled if self.passes == 1 else pooled.unflatten(0, (-1, self.passes))

    @abstractmethod
    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return tensors by name, such as `label` (batch,), that `losses` and `metrics` compare the logits with."""

    @abstractmethod
    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Return a new head that maps the output of `group_features` to logits.

        `head_size` is the width of the hidden layer, if the head has one; None means `feature_size`.
        """

    def init_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the checkpoint's head named `pretrained_head` into a new head, if `heads` (tensors by head) has it."""
        if self.pretrained_head is not None and self.pretrained_head in heads:
            load_head(head, self.pretrained_head, heads[self.pretrained_head])

    @abstractmethod
    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return (batch,) losses in nats from the logits of `build_head`, (batch, classes) in most tasks, and `targets`."""

    def matching_loss(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """Return the image-text-matching loss that training may add (`itm_weight`), given the heads of the checkpoint.

        It maps (batch * passes, feature_size) pooled features to (batch,) losses in nats. Raise ValueError if the task
        has no such loss, or the checkpoint no head for it.
        """
        raise ValueError(f"{self.name} has no image-text-matching loss. Leave `itm_weight` out")

    @abstractmethod
    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return (batch,) metrics, 0..1, larger is better; arguments are those of `losses`."""

    def other_metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return further metrics of each example by name, (batch,), 0..1, whose means are reported; by default none."""
        return {}

    def chance(self, examples: Sequence[Any]) -> float:
        """Return the mean metric, 0..1, of answers to the examples that are drawn at random; 0 for open answers."""
        return 0.0

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return KL(full model || subnet), (batch,) in nats, given the logits of the subnet and of the full model."""
        full = full_logits.log_softmax(-1)
        subnet = logits.log_softmax(-1)
        return (full.exp() * (full - subnet)).sum(-1)

    def predictions(self, examples: Sequence[Any], logits: Tensor) -> list[dict[str, Any]]:
        """Return the answer to each example as plain JSON values, in the form that the task's evaluation server takes."""
        has_classes = logits.ndim > 1 and len(logits) == len(examples)
        numbers = logits.flatten(1).argmax(-1).tolist() if has_classes else [None] * len(examples)
        return [{"key": e.key, "prediction": number} for e, number in zip(examples, numbers, strict=True)]

    def generation_prompt(self, example: Any) -> Any:
        """Return the prompt to which the model generates an answer; None for an example with classes or options."""
        return None

    def format_generated(self, example: Any, text: str) -> dict[str, Any]:
        """Return a generated answer to `generation_prompt` in the form of `predictions`."""
        raise self._not_generated(example, text)

    def question(self, example: Any) -> str:
        """Return the question of an example as text for reports; by default, the text of its first pair."""
        return self.pairs([example])[0].text

    def reference(self, example: Any) -> str:
        """Return the right answer to an example as text for reports; empty where it is unknown."""
        return ""

    def format_prediction(self, example: Any, prediction: Mapping[str, Any]) -> str:
        """Return an entry of `predictions` as text for reports."""
        answer = prediction.get("prediction", prediction.get("answer"))
        if isinstance(answer, int) and 0 <= answer < len(self.logit_names):
            return self.logit_names[answer]
        return "" if answer is None else str(answer)

    def group(self, example: Any) -> str:
        """Return the data set's own group of an example, such as a question type; may be empty."""
        return ""

    def summary(self, examples: Sequence[Any], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return what to report of a split, given (n_examples,) values: means of `loss` (nats) and metrics, by name."""
        return {self.metric_name: float(metrics.mean()), "loss": float(losses.mean())}

    def open_ended(self, examples: Sequence[Any]) -> list[Any]:
        """Return the examples without options: each is one pair, and any answer can be generated."""
        raise self._not_generated(examples, "")

    def score_text(self, example: Any, text: str) -> float:
        """Return the score of a generated answer, 0..1, larger is better."""
        raise self._not_generated(example, text)

    def _not_generated(self, example: Any, text: str) -> TypeError:
        return TypeError(f"{self.name} has no generated answers: got {text!r} for {example!r:.200}")

    @classmethod
    def gallery(cls, examples: Sequence[Any], max_images: int | None = None) -> Gallery | None:
        """Return at most `max_images` images and their texts, to rank for retrieval metrics; None for other tasks."""
        return None

    def shuffled_order(self, examples: Sequence[Any]) -> np.ndarray:
        """Return an order that mixes the examples, (len(examples),) int64, the same on every machine."""
        return np.random.default_rng(0).permutation(len(examples))

    def covers_labels(self, examples: Sequence[Any]) -> bool:
        """Return True if enough of the right answers are among the labels; by default always."""
        return True


def check_task(task: object, name: str) -> None:
    """Raise TypeError for what cannot be the task of that name; the message lists everything that is missing."""
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"not a task: got {task!r}, expected a subclass of das_gym.Task, or its 'module:name'")
    lacks = [*([] if getattr(task, "name", None) == name else [f"name = {name!r}"]), *sorted(task.__abstractmethods__)]
    if lacks:
        raise TypeError(f"{task.__name__} cannot be the task {name!r}: it lacks {', '.join(lacks)}; see das_gym.Task")


def load_head(head: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a checkpoint's head, by name, into a new head; warn if a name or shape differs."""
    shapes, loaded = ({key: tuple(t.shape) for key, t in some.items()} for some in (head.state_dict(), tensors))
    if shapes == loaded:
        head.load_state_dict(dict(tensors))
        return
    key = next(key for key in (*shapes, *loaded) if shapes.get(key) != loaded.get(key))
    warnings.warn(
        f"the head is not initialized from the checkpoint's {name}: {key} has shape {loaded.get(key)}, expected "
        f"{shapes.get(key)}",
        stacklevel=2,
    )


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Return the labels in a JSON list, in the order of the classes; ValueError unless it has two or more, all different."""
    labels = read_json(path)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path} is not an answer vocabulary: got {labels!r:.60}, expected a list of texts")
    if len(set(labels)) < max(2, len(labels)):
        raise ValueError(f"{path} is not an answer vocabulary: expected two or more different answers")
    return tuple(labels)


def content_hash(task: Task, examples: Sequence[Any]) -> str:
    """Return 16 hex digits of all texts and pixels of the examples, in order; every image is opened once."""
    digest = hashlib.sha256()
    known: dict[str, bytes] = {}
    for pair in task.pairs(examples):
        digest.update(pair.text.encode())
        for image in pair.images:
            if image.key not in known:
                pixels = image.open()
                known[image.key] = hashlib.sha256(str(pixels.size).encode() + pixels.tobytes()).digest()
            digest.update(known[image.key])
    return digest.hexdigest()[:16]


def build_classifier(input_size: int, num_classes: int, hidden_size: int) -> nn.Sequential:
    """Return Linear, LayerNorm, GELU, Linear: (batch, input_size) to (batch, num_classes) logits."""
    first = nn.Linear(input_size, hidden_size)
    last = nn.Linear(hidden_size, num_classes)
    for layer in (first, last):  # as METER and ViLT initialize their heads
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(hidden_size), nn.GELU(), last)


class ClassificationTask(Task):
    """Examples have a `label`, the index of the right class; logits are in the order of the classes.

    Attributes:
        classes: The names of the classes in predictions.
        key_name: The name of an example's key in predictions.
    """

    classes: ClassVar[tuple[str, ...]]
    key_name: ClassVar[str] = "key"

    @property
    def logit_names(self) -> tuple[str, ...]:
        return self.classes

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return `label`: (batch,) int64, indices into `classes`."""
        return {"label": torch.tensor([int(e.label) for e in examples])}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Return a new head on the concatenated features of all passes."""
        return build_classifier(self.passes * feature_size, len(self.classes), head_size or feature_size)

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits, targets["label"], reduction="none")

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return (batch,) 1 where the largest logit is that of the label, else 0."""
        return (logits.argmax(-1) == targets["label"]).to(logits)

    def chance(self, examples: Sequence[Any]) -> float:
        return 1 / len(self.classes)

    def predictions(self, examples: Sequence[Any], logits: Tensor) -> list[dict[str, Any]]:
        """Return the key as `key_name`, and `prediction`, one of `classes`."""
        numbers = logits.argmax(-1).tolist()
        return [{self.key_name: e.key, "prediction": self.classes[n]} for e, n in zip(examples, numbers, strict=True)]

    def reference(self, example: Any) -> str:
        return self.classes[int(example.label)]


def token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the (tokens,) negative log-likelihoods in nats of int64 tokens, given (tokens, vocabulary) logits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()  # half precision loses small differences
    return F.cross_entropy(logits, labels, reduction="none")


def sum_by_prompt(values: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Return the (prompts,) sums of (tokens,) values; `targets` are those of a `TokenTask`."""
    return values.new_zeros(len(targets["lengths"])).index_add(0, targets["prompt"], values)


def mean_by_prompt(values: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Return the (prompts,) means of (tokens,) values; see `sum_by_prompt`."""
    return sum_by_prompt(values, targets) / targets["lengths"]


class TokenTask(Task):
    """The model predicts tokens. Logits are (tokens, vocabulary), prompt by prompt, from the model's own head.

    Targets have `labels`, the tokens, and `prompt`, the prompt of each, both (tokens,) int64; and `lengths`, how many tokens
    each prompt has, (prompts,) int64, since the host would have to wait for a GPU to count them.
    """

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Raise TypeError: only the model's own head over its vocabulary predicts tokens."""
        raise TypeError(f"the task {self.name} needs a language model with its own head. Use `model=VLM`")

    def losses(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the mean negative log-likelihood of each prompt's tokens, (prompts,), in nats a token."""
        return mean_by_prompt(token_nats(logits, targets["labels"]), targets)

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return KL(full model || subnet) of the next token, mean over each prompt's tokens, (prompts,), in nats."""
        return mean_by_prompt(super().divergences(logits, full_logits, targets), targets)
