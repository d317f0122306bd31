"""What is left after layers are deleted learns to do without them: LoRA, all of it, or adapters, taught by the whole model.

The loss is KL(teacher || student) of the answer's tokens at temperature 1 (Hinton et al., arXiv 1503.02531; alone in
Minitron, arXiv 2407.14679), plus cross-entropy with the reference answer, plus, where asked for, the distance of hidden
vectors: the last (cosine as in Minitron, mean squares as in VLMCompression, IJCV 2026), or those behind every kept layer as
well (TinyBERT, arXiv 1909.10351). LoRA is peft's (arXiv 2106.09685), merged at the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from das_gym.adapt.methods.lora import inject_lora, is_linear, merge_lora
from das_gym.adapt.step_loss import batch_at
from das_gym.adapt.training import POSITIVE, TRAINING_RANGES, Group, Log, StepResult, Trainer, adamw, check_ranges, decay
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.transformers.features import find_projectors
from das_gym.models.transformers.generation import batches_of
from das_gym.models.transformers.inserted_adapters import insert_into_pruned, kept_layers
from das_gym.models.transformers.layer_removal import decoder_path
from das_gym.models.transformers.model import VLM
from das_gym.progress import progress
from das_gym.tasks.base import Task

RATES = {"lora": 1e-3, "adapters": 3e-3, "full": 1e-4, "none": 0.0}
RATE_WIDTH = 80
"""Peak learning rates on the bundled model, the best there of a small grid (`python -m benchmarks.recovery`), and its width.
The root leads to about what is usual for billions of parameters: Shortened LLaMA and Minitron take 1e-4 at 4,096."""

WIDTHS = ("rank", "alpha", "bottleneck", "skip_bottleneck")
LARGE_TEACHER = 2**30
"""Bytes of a teacher's kept outputs above which they are kept in 16 bits."""


@dataclass(frozen=True)
class RecoveryConfig:
    """Settings of the training that follows a deletion.

    Attributes:
        recover: How the remaining layers are trained: LoRA, all parameters of the decoder and projector, the adapters of
            DAS, or no training.
        seed: Random seed of the order of examples and of new parameters.
        steps: Number of training steps.
        batch_size: Examples per step.
        learning_rate: Peak learning rate. None chooses it by `recover` and the hidden size of the decoder.
        warmup: Fraction of the steps in which the learning rate rises, 0..1. It then falls to 0 along a cosine.
        weight_decay: Weight decay of matrices.
        rank: Rank of LoRA.
        alpha: Scaling of LoRA: the update counts `alpha / rank` times.
        bottleneck: Width of the adapters before attention and MLP. None means 1/64 of the hidden size, at least 8.
        skip_bottleneck: Width of the adapters in place of deleted layers. None means 1/16 of the hidden size, at least 8.
        distillation: Weight of the KL divergence from the full model's answers.
        cross_entropy: Weight of the cross-entropy with the reference answers.
        hidden: Distance to the full model's hidden states that is added to the loss.
        hidden_at: Hidden states to compare: those of the last layer, or of every kept layer.
        hidden_weight: Weight of the distance of hidden states.
        save_every: Steps between checkpoints.
    """

    group: ClassVar[str] = "Recovery"

    recover: Literal["lora", "full", "adapters", "none"] = "lora"
    seed: int = 0
    steps: int = 800
    batch_size: int = 16
    learning_rate: float | None = None
    warmup: float = 0.03
    weight_decay: float = 0.0
    rank: int = 16
    alpha: int = 32
    bottleneck: int | None = None
    skip_bottleneck: int | None = None
    distillation: float = 1.0
    cross_entropy: float = 0.5
    hidden: Literal["none", "cosine", "mse"] = "none"
    hidden_at: Literal["last", "layers"] = "last"
    hidden_weight: float = 1.0
    save_every: int = 100

    def __post_init__(self) -> None:
        weights = dict.fromkeys(("distillation", "cross_entropy", "hidden_weight"), (0.0, math.inf))
        check_ranges(self, **TRAINING_RANGES, **dict.fromkeys(WIDTHS, POSITIVE), **weights)
        if not (self.distillation or self.cross_entropy or (self.hidden != "none" and self.hidden_weight)):
            raise ValueError(
                "distillation=0, cross_entropy=0 and no hidden loss: there is nothing to learn; give one a weight"
            )

    def rate(self, hidden_size: int) -> float:
        """The peak learning rate of a decoder of that width."""
        if self.learning_rate is not None:
            return self.learning_rate
        return RATES[self.recover] * math.sqrt(RATE_WIDTH / hidden_size)

    def widths(self, hidden_size: int) -> tuple[int, int]:
        """Of adapters before attention and MLP, and of those in the place of deleted layers."""
        return self.bottleneck or max(8, hidden_size // 64), self.skip_bottleneck or max(8, hidden_size // 16)

    @property
    def of_layers(self) -> bool:
        """Whether what kept layers give is compared."""
        return self.hidden != "none" and self.hidden_at == "layers"


def answer_features(vlm: VLM, task: Task, examples: Sequence[Any]) -> Tensor:
    """(tokens of all answers, hidden_size): the final hidden vectors that answers' tokens are predicted from.

    By the model's own forward, pictures included.

    Args:
        vlm: The model, nothing in it skipped.
        task: Answered in words.
        examples: Each of one pair, see `Task.open_ended`.
    """
    return answer_vectors(vlm, task, examples)[:, 0]


def answer_vectors(vlm: VLM, task: Task, examples: Sequence[Any], places: Sequence[int] = ()) -> Tensor:
    """(tokens of all answers, 1 + places, hidden_size): as `answer_features`, then what decoder layers give there.

    Args:
        vlm: The model.
        task: Answered in words.
        examples: Each of one pair.
        places: Positions of the layers.
    """
    processor: Any = task.processor
    encodings = [processor.encode(prompt, pixels=True) for prompt in task.pairs(examples)]
    found: dict[int, Tensor] = {}
    for rows in batches_of(encodings, len(encodings)):
        with outputs_of([vlm.stack.layers[place] for place in places]) as given:
            last = vlm.run([encodings[row] for row in rows]).last_hidden_state
        hidden = torch.stack((last, *given), dim=2)
        for number, row in enumerate(rows):
            e = encodings[row]
            found[row] = hidden[number, e.answer - 1 : len(e.ids) - 1]
    return torch.cat([found[row] for row in range(len(encodings))])


@contextmanager
def outputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that holds, once they have run, what the layers gave: (rows, tokens, hidden_size) each."""
    given: list[Tensor] = []
    keep = lambda _, args, output: given.append(output[0] if isinstance(output, tuple) else output)  # noqa: E731
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def places_read(whole: VLM, left: Sequence[int], stood_in: bool) -> list[int]:
    """Of each kept layer, the layer of the whole model that gives what it should give.

    That is what the next kept layer reads there; where something stands in for deleted layers, what the layer itself gives.

    Args:
        whole: The whole model.
        left: Positions of the kept layers.
        stood_in: Whether something stands in.
    """
    own = left[:-1] if stood_in else [after - 1 for after in left[1:]]
    return [*own, len(whole.stack.layers) - 1]


class Teacher:
    """What the whole model says to each example, computed once and kept: the hidden vectors that its head reads.

    Args:
        vlm: The whole model.
        task: Answered in words.
        examples: Each of one pair.
        batch_size: Examples at a time.
        places: Positions of layers of which it keeps what they give, besides.
    """

    def __init__(
        self,
        vlm: VLM,
        task: Task,
        examples: Sequence[Any],
        batch_size: int,
        places: Sequence[int] = (),
    ) -> None:
        self.head = vlm.own_head()
        self.dtype = vlm.model.dtype
        self._kept: dict[str, Tensor] = {}
        with torch.no_grad(), progress(len(examples), "asking the whole model", unit="example") as bar:
            for start in range(0, len(examples), batch_size):
                chunk = examples[start : start + batch_size]
                vectors = answer_vectors(vlm, task, chunk, places)
                counts = torch.bincount(task.targets(chunk)["prompt"]).tolist()
                large = vectors.numel() * 4 * len(examples) > LARGE_TEACHER * len(chunk)
                for example, part in zip(chunk, vectors.split(counts), strict=True):
                    self._kept[example.key] = part.half() if large and part.dtype == torch.float32 else part.clone()
                bar.update(len(chunk))

    def vectors(self, examples: Sequence[Any]) -> Tensor:
        """(tokens of all answers, 1 + places, hidden_size)."""
        return torch.cat([self._kept[e.key] for e in examples])

    def logits(self, features: Tensor) -> Tensor:
        """(tokens, vocabulary): the head does not train, so that nothing else need be kept."""
        with torch.no_grad():
            return self.head(features.to(self.dtype))


def rows_used(count: int, config: RecoveryConfig) -> set[int]:
    """Which of so many examples, one or more, the training reads."""
    size = min(config.batch_size, count)
    return {row for step in range(config.steps) for row in batch_at(range(count), size, config.seed, step)}


def ask(whole: VLM, task: Task, examples: Sequence[Any], config: RecoveryConfig, left: Sequence[int]) -> Teacher:
    """What the whole model says to the examples of a training.

    Args:
        whole: The whole model.
        task: Answered in words.
        examples: The train split.
        config: Settings of the training.
        left: Positions of the layers that were not deleted.
    """
    used = [examples[row] for row in sorted(rows_used(len(examples), config))]
    read = places_read(whole, left, config.recover == "adapters") if config.of_layers else []
    return Teacher(whole, task, task.open_ended(used), min(config.batch_size, len(examples)), read)


def ask_for_all(whole: VLM, task: Task, examples: Sequence[Any], config: RecoveryConfig) -> Teacher | None:
    """As `ask`, once for recoveries of any masks; None where none asks, or a mask decides what is asked."""
    if config.recover == "none" or config.of_layers or not len(examples):
        return None
    return ask(whole, task, examples, config, ())


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Give a module parameters of its own, copies of those that it shared, which train; they are returned."""
    own: list[nn.Parameter] = []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                copied = nn.Parameter(parameter.detach().clone())
                part._parameters[name] = copied
                own.append(copied)
    return own


def lora_places(vlm: VLM) -> list[str]:
    """Names of the linear layers of decoder and projector, which LoRA goes around.

    Raises:
        ValueError: there is none.
    """
    places = (decoder_path(vlm), *find_projectors(vlm.model))
    names = [
        name
        for name, module in vlm.model.named_modules()
        if any(name == p or name.startswith(f"{p}.") for p in places) and is_linear(module)
    ]
    if not names:
        raise ValueError(f"{type(vlm.model).__name__} has no linear layers in its decoder: use recover=full or recover=none")
    return names


def add_lora(vlm: VLM, rank: int, alpha: int) -> list[nn.Parameter]:
    """LoRA on every linear layer of decoder and projector; what trains is returned.

    Raises:
        ValueError: there is no linear layer.
    """
    return inject_lora(vlm.model, lora_places(vlm), rank, alpha)


@dataclass
class Recovery:
    """The training of a model after deletion.

    Attributes:
        student: What `cut` made; it is trained in place, and the whole model stays as it is.
        whole: The whole model.
        task: Answered in words.
        examples: The train split.
        config: Settings.
        checkpoint: File to save to, and to go on from.
        teacher: What the whole model says, where it was asked before, see `ask`; None = it is asked.
    """

    student: VLM
    whole: VLM
    task: Task
    examples: Sequence[Any]
    config: RecoveryConfig
    checkpoint: Path | None = None
    teacher: Teacher | None = None
    trained: int = field(default=0, init=False)
    """Parameters that trained."""

    def run(self, log: Log | None = None, title: str = "recovering") -> None:
        """Train, and merge what was learnt.

        Args:
            log: Called with name, value and step.
            title: Of the progress bar.

        Raises:
            ValueError: no examples.
            FloatingPointError: the loss is not a number any more.
        """
        config = self.config
        if config.recover == "none":
            return
        if not len(self.examples):
            raise ValueError("there are no training examples to recover with: use recover=none, or data with a train split")
        torch.manual_seed(config.seed)
        size = min(config.batch_size, len(self.examples))
        dtype = self.student.model.dtype
        left = kept_layers(self.whole, self.student)
        parameters = self._prepare(dtype)
        self.trained = sum(p.numel() for p in parameters)
        schedule = partial(decay, steps=config.steps, warmup=config.warmup, schedule="cosine")
        optimizer = adamw([Group(parameters, config.rate(self.student.feature_size))], config.weight_decay)
        modules: dict[str, nn.Module] = {"student": self.student.model}
        trainer = Trainer(modules, optimizer, config.steps, schedule, self.checkpoint, config.save_every)
        teacher = self.teacher or ask(self.whole, self.task, self.examples, config, left)
        trainer.run(partial(self._step, teacher, size), f"{title} ({config.recover})", log)
        self._finish(dtype)

    def _open(self, rows: Iterable[int]) -> Sequence[Any]:
        return self.task.open_ended([self.examples[row] for row in rows])

    def _prepare(self, dtype: torch.dtype) -> list[nn.Parameter]:
        """What trains; in full in 32 bits at least, since steps of 1e-4 are lost in 16."""
        if self.config.recover == "lora":
            return add_lora(self.student, self.config.rank, self.config.alpha)
        if self.config.recover == "adapters":
            return insert_into_pruned(self.student, self.whole, *self.config.widths(self.student.feature_size))
        if dtype in (torch.float16, torch.bfloat16):
            self._become(copy.deepcopy(self.student.model).float())
        parts = [*self.student.stack.layers, *find_projectors(self.student.model).values()]
        return [p for part in parts for p in own_parameters(part)]

    def _become(self, model: Any) -> None:
        """The student with other parameters."""
        self.student.__init__(model, capabilities=self.student.capabilities)  # type: ignore[misc]

    def _finish(self, dtype: torch.dtype) -> None:
        if self.config.recover == "lora":
            merge_lora(self.student.model)
        elif self.config.recover == "adapters":
            self.student.model.to(dtype)
        elif self.student.model.dtype != dtype:
            self._become(self.student.model.to(dtype))
        self.student.freeze()

    def _step(self, teacher: Teacher, size: int, step: int) -> StepResult:
        rows = batch_at(range(len(self.examples)), size, self.config.seed, step)
        return recovery_loss(self.student, teacher, self.task, self._open(rows), self.config)


def recovery_loss(student: VLM, teacher: Teacher, task: Task, examples: Sequence[Any], config: RecoveryConfig) -> StepResult:
    """`loss`, what is minimised, and its parts in nats: `divergence`, `cross_entropy`, and `hidden` where asked for."""
    places = range(len(student.stack.layers)) if config.of_layers else ()
    vectors, wanted = answer_vectors(student, task, examples, places), teacher.vectors(examples)
    features = vectors[:, 0]
    targets = {name: t.to(features.device) for name, t in task.targets(examples).items()}
    logits = student.own_head()(features)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    parts = {
        "divergence": task.divergences(logits, teacher.logits(wanted[:, 0]).to(logits), targets).mean(),
        "cross_entropy": task.losses(logits, targets).mean(),
    }
    loss = config.distillation * parts["divergence"] + config.cross_entropy * parts["cross_entropy"]
    if config.hidden != "none":
        parts["hidden"] = hidden_distance(vectors, wanted.to(vectors), config.hidden)
        loss = loss + config.hidden_weight * parts["hidden"]
    return {"loss": loss, **parts}


def hidden_distance(given: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Mean over vectors of 1 - cosine (`cosine`), or mean square of the difference (`mse`), of (..., width) vectors."""
    if kind == "cosine":
        return (1 - F.cosine_similarity(given, wanted, dim=-1)).mean()
    return F.mse_loss(given, wanted)
