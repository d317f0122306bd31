"""Recover a pruned model: train what remains by distillation from the full model.

The loss is KL(teacher || student) of the answer's tokens at temperature 1 (Hinton et al., arXiv 1503.02531; alone in
Minitron, arXiv 2407.14679), plus cross-entropy with the reference answer. A method of `das_gym.adapt.methods` decides what
trains, as in fine-tuning.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from das_gym.adapt.hardware import checkpointed_bytes, free_bytes, gib_bytes, process_share, training_bytes
from das_gym.adapt.methods.base import Method, PrunedModel, copy_parameters
from das_gym.adapt.prefetching import Prefetcher
from das_gym.adapt.shrinking.images import TowerOutputs, find_frozen_tower
from das_gym.adapt.shrinking.memory import GENERATE_BATCH_SIZE, TrainingPlan, answers_at_a_time, plan_training
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.adapt.step_loss import training_batch
from das_gym.adapt.training import SAVE_SECONDS, Log, StepResult, Trainer, adamw, learning_rate_factor
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from das_gym.commands.progress import progress
from das_gym.engine.caches import CACHE_BYTES, usable_bytes
from das_gym.engine.tree import saved_bytes
from das_gym.files import explain_damage, read_json, write_json
from das_gym.models.base import HALVES
from das_gym.models.inputs import Requests
from das_gym.models.random_states import kept_random_states
from das_gym.models.transformers.generation import generate_tokens, group_batches
from das_gym.models.transformers.inserted_adapters import insert_into_pruned
from das_gym.models.transformers.layer_removal import decoder_path
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import replace_forwards
from das_gym.models.transformers.tower import find_projectors
from das_gym.problem.problem import Problem
from das_gym.processes import world_size
from das_gym.tasks.base import Task

WARMUP = 0.03
"""Fraction of the steps in which the learning rate rises; it then falls to 0 along a cosine."""

TEACHER_BYTES = 2**30
"""Most bytes of the full model's hidden states to keep. Those of every token of a text are many."""

TARGET_TOKENS = 64
"""Most tokens of a generated answer to train on."""


def answer_states(vlm: VLM, task: Task, examples: Sequence[Any], images: TowerOutputs | None = None) -> Tensor:
    """Return the last hidden states that the tokens of all answers are predicted from, (tokens, hidden_size).

    They are computed by the model's own forward, images included; with `images`, the vision tower runs once for each.
    """
    processor: Any = task.processor
    prompts: Any = task.pairs(examples)
    features = {} if images is None else images.features(prompts)
    encodings = [processor.encode(prompt, pixels=images is None) for prompt in prompts]
    found: dict[int, Tensor] = {}
    for rows in group_batches(encodings, len(encodings)):
        given = [features[prompts[row].image_key] for row in rows if prompts[row].image_key in features]
        hidden = vlm.run([encodings[row] for row in rows], given).last_hidden_state
        for number, row in enumerate(rows):
            encoding = encodings[row]  # the state at a position predicts the token after it
            found[row] = hidden[number, encoding.answer - 1 : len(encoding.ids) - 1]
    return torch.cat([found[row] for row in range(len(encodings))]).to(vlm.device)


class Teacher:
    """The full model's hidden states for each example; its head, which does not train, gives the logits.

    They are computed once and kept, or, if they take more than `TEACHER_BYTES`, each time. Kept states are computed in the
    same batches in any case, so that a resumed training computes only those of its steps, to the bit.

    Args:
        full_model: The model.
        task: Makes prompts and targets.
        examples: All examples whose states may be needed.
        batch_size: Examples of these batches.
        answers: Examples with the answers to train on, by key; None for the reference answers.
    """

    def __init__(
        self, full_model: VLM, task: Task, examples: Sequence[Any], batch_size: int, answers: Mapping[str, Any] | None = None
    ) -> None:
        # Hidden states are kept, not logits: a vocabulary is many times wider than the model.
        self.head = full_model.language_head()
        self.dtype = full_model.model.dtype
        self.answers = answers
        self._full_model = full_model
        self._task = task
        self._examples = self.with_answers(examples)
        self._batch_size = batch_size
        self._batch_of = {example.key: row // batch_size for row, example in enumerate(examples)}
        self._states: dict[str, Tensor] | None = {}
        self.prepare(self._examples[:batch_size])
        kept = sum(states.nbytes for states in self._states.values())
        if kept * len(examples) > TEACHER_BYTES * len(self._states):
            self._states = None

    def prepare(self, examples: Sequence[Any]) -> None:
        """Compute the states of examples ahead, if they are kept."""
        if self._states is None:
            return
        numbers = sorted({self._batch_of[example.key] for example in examples if example.key not in self._states})
        batches = [self._examples[number * self._batch_size :][: self._batch_size] for number in numbers]
        if not batches:
            return
        with torch.no_grad(), progress(sum(map(len, batches)), "running the full model", unit="example") as bar:
            for batch in batches:
                states = answer_states(self._full_model, self._task, batch)
                counts = self._task.targets(batch)["lengths"].tolist()
                for example, part in zip(batch, states.split(counts), strict=True):
                    self._states[example.key] = part.clone()
                bar.update(len(batch))

    def with_answers(self, examples: Sequence[Any]) -> Sequence[Any]:
        """Return examples of `Task.open_ended` with the answers to train on."""
        return examples if self.answers is None else [self.answers[example.key] for example in examples]

    def states(self, examples: Sequence[Any]) -> Tensor:
        """Return the hidden states of examples, (tokens of all answers, hidden_size)."""
        if self._states is None:
            with torch.no_grad():
                return answer_states(self._full_model, self._task, examples)
        self.prepare(examples)
        return torch.cat([self._states[e.key] for e in examples])

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return the (tokens, vocabulary) logits of hidden states."""
        return self.head(states.to(self.dtype))


def training_rows(count: int, config: RecoveryConfig, first: int = 0) -> list[int]:
    """Return which of `count` examples the steps from `first` on read in this process, in order."""
    size = min(config.batch_size, count)
    steps = range(first, config.num_steps)
    return sorted({row for step in steps for row in process_share(training_batch(range(count), size, config.seed, step))})


def make_teacher(
    full_model: VLM, task: Task, examples: Sequence[Any], config: RecoveryConfig, kept: Path | None = None
) -> Teacher | None:
    """Return the teacher of recoveries; None if nothing trains.

    With `targets=teacher`, the task has to have answers. A single process keeps those that are generated in the file `kept`,
    so that a resumed run need not generate them again.
    """
    if config.method is None or not len(examples):
        return None
    used = task.open_ended([examples[row] for row in training_rows(len(examples), config)])
    answers = None
    if config.targets == "teacher":
        answers = generated_answers(full_model, task, used, kept if world_size() == 1 else None)
    return Teacher(full_model, task, used, min(config.batch_size, len(examples)), answers)


def generated_answers(full_model: VLM, task: Task, examples: Sequence[Any], kept: Path | None = None) -> dict[str, Any]:
    """Return examples of `Task.open_ended`, by key, with what the full model answers; where that is nothing, as they are.

    An answer of `TARGET_TOKENS` is cut off, and no end is learned after it. `kept` is a file, see `make_teacher`.
    """
    processor: Any = task.processor
    prompts: Any = [dataclasses.replace(prompt, answer=None) for prompt in cast(Any, task.pairs(examples))]
    answered = {}
    for example, tokens in zip(examples, _target_tokens(full_model, processor, prompts, kept), strict=True):
        is_cut = len(tokens) == TARGET_TOKENS
        text = processor.decode(tokens)
        if is_cut:
            text = text.removesuffix("\N{REPLACEMENT CHARACTER}")  # the first bytes of a letter
        answered[example.key] = dataclasses.replace(example, answer=text, is_cut=is_cut) if text else example
    return answered


def _target_tokens(full_model: VLM, processor: Any, prompts: Sequence[Any], kept: Path | None) -> list[list[int]]:
    """Return the tokens of generated answers: those in the file `kept`, which an earlier process wrote, and the others."""
    known = {}
    if kept is not None and kept.is_file():
        record = read_json(kept)
        with explain_damage(kept, "remove it, and resume again"):
            size = int(record["batch_size"])  # other batches may round to another token
            known = {int(row): [int(token) for token in tokens] for row, tokens in record["answers"].items()}
    else:
        free = free_bytes(full_model)
        size = answers_at_a_time(full_model, processor, prompts, free, GENERATE_BATCH_SIZE, new_tokens=TARGET_TOKENS)
    saved = time.monotonic()

    def keep(found: Mapping[int, list[int]]) -> None:
        nonlocal saved
        if kept is not None and (len(found) == len(prompts) or time.monotonic() - saved > SAVE_SECONDS):
            write_json(kept, {"batch_size": size, "answers": found}, indent=None)
            saved = time.monotonic()

    return generate_tokens(full_model, processor, prompts, "answers to train on", size, TARGET_TOKENS, known, keep)


def trainable_parts(vlm: VLM) -> dict[str, nn.Module]:
    """Return the modules that recovery may train, by name: the decoder layers and the projector."""
    return {decoder_path(vlm): vlm.stack.layers, **find_projectors(vlm.model)}


def insert_trainable(student: VLM, full_model: VLM, method: Method) -> list[nn.Parameter]:
    """Insert what a method trains into a pruned copy, which keeps sharing all other parameters; return what trains."""
    insert_adapters = partial(insert_into_pruned, student, full_model)
    pruned = PrunedModel(student, student.model, trainable_parts(student), insert_adapters)
    parameters = method.insert_for_recovery(pruned)
    # The full model, which is the teacher, shares the weights.
    parameters = copy_parameters(student.model, parameters) if method.trains_weights else parameters
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


@contextmanager
def checkpointed_layers(vlm: VLM, active: bool) -> Iterator[None]:
    """Use gradient checkpointing for the decoder layers: transformers' own would turn dropout on."""
    forwards = {layer: partial(checkpoint, layer.forward, use_reentrant=False) for layer in vlm.stack.layers if active}
    with replace_forwards(forwards):
        yield


def recover_student(
    student: VLM,
    problem: Problem,
    config: RecoveryConfig,
    checkpoint: Path | None = None,
    teacher: Teacher | None = None,
    log: Log | None = None,
    title: str = "recovering",
) -> list[nn.Parameter]:
    """Train a `pruned_copy` of a problem's model on the train split, in place, and return the parameters that were trained.

    The problem's model, which shares weights with the student, stays as it is. Use the student after `merge_into_copies`, or
    within `temporarily_merged`. An existing checkpoint is resumed. `teacher` is that of `make_teacher`; None makes one.
    """
    if config.method is None:
        return []
    full_model = cast(VLM, problem.vlp)
    task = problem.task
    examples = problem.splits.train
    teacher = teacher or make_teacher(full_model, task, examples, config)
    if teacher is None:
        raise ValueError("There are no training examples to recover with. Use recover=none, or data with a train split.")
    torch.manual_seed(config.seed)
    if config.method.trains_weights and student.model.dtype in HALVES:  # an update of 1e-4 of a weight is lost in 16 bits
        copy_parameters(student.model, list(student.model.parameters()))  # the full model keeps its own
        student.model.float()
    parameters = insert_trainable(student, full_model, config.method)
    optimizer = adamw([(parameters, config.peak_rate(student.feature_size))], weight_decay=0.0)
    schedule = partial(learning_rate_factor, steps=config.num_steps, warmup=WARMUP, schedule="cosine")
    steps = RecoverySteps(student, teacher, task, examples, config)
    steps.choose_plan(parameters)
    trainer = Trainer(
        {"student": student.model},
        optimizer,
        config.num_steps,
        schedule,
        checkpoint,
        config.save_every,
        prefetcher=steps.prefetcher,
    )
    trainer.resume()
    left = training_rows(len(examples), config, trainer.step)
    teacher.prepare(task.open_ended([examples[row] for row in left]))
    trainer.run(steps, f"{title} ({config.recover})", log)
    return parameters


class RecoverySteps:
    """The losses of a step of recovery by its index, in micro-batches that add up to it.

    Attributes:
        plan: How many examples at a time; see `choose_plan`.
        images: Outputs of the frozen vision tower; None if it runs at every step.
    """

    def __init__(self, student: VLM, teacher: Teacher, task: Task, examples: Sequence[Any], config: RecoveryConfig) -> None:
        processor: Any = task.processor
        tower = find_frozen_tower(student, processor)
        given = gib_bytes(config.encoder_cache_gib)
        max_bytes = usable_bytes(student.device, CACHE_BYTES, 0.25) if given is None else given
        self.student = student
        self.teacher = teacher
        self.task = task
        self.examples = examples
        self.config = config
        self.batch_size = min(config.batch_size, len(examples))
        self.plan = TrainingPlan(config.micro_batch_size or self.batch_size, bool(config.gradient_checkpointing), 0)
        self.images = None if tower is None else TowerOutputs(student, tower, processor, max_bytes)
        self.prefetcher = Prefetcher(processor, self._requests, config.dataloader_num_workers)

    def __call__(self, index: int) -> Iterator[StepResult]:
        """Yield the losses of each micro-batch, weighted by its size; results of several processes are averaged."""
        for number, part in enumerate(self._micro_batches(index)):
            self.prefetcher.load(index, number)
            losses = self.losses(part)
            weight = len(part) * world_size() / self.batch_size
            yield {name: value * weight for name, value in losses.items()}

    def losses(self, examples: Sequence[Any]) -> StepResult:
        """Return the `recovery_loss` of examples of `batch`, computed as planned."""
        with checkpointed_layers(self.student, self.plan.gradient_checkpointing):
            return recovery_loss(self.student, self.teacher, self.task, examples, self.config, self.images)

    def batch(self, index: int) -> Sequence[Any]:
        """Return this process's examples of a step, of `Task.open_ended`, with the answers to train on."""
        rows = process_share(training_batch(range(len(self.examples)), self.batch_size, self.config.seed, index))
        return self.teacher.with_answers(self.task.open_ended([self.examples[row] for row in rows]))

    def _micro_batches(self, index: int) -> list[Sequence[Any]]:
        batch = self.batch(index)
        size = self.plan.micro_batch_size
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _requests(self, index: int) -> list[Requests]:
        processor: Any = self.task.processor

        def is_kept(key: Any) -> bool:
            return self.images is not None and self.images.has(key)

        return [processor.requests(self.task.pairs(part), None, is_kept) for part in self._micro_batches(index)]

    def choose_plan(self, trained: Sequence[nn.Parameter]) -> None:
        """Fit a step into the free memory, by the longest prompt of the first one; print how, or raise ValueError."""
        student = self.student
        batch = self.batch(0)
        processor: Any = self.task.processor
        lengths = [sum(len(processor.encode(prompt).ids) for prompt in self.task.pairs([example])) for example in batch]
        longest = [batch[lengths.index(max(lengths))]]
        # Dropout must not draw from the random numbers of the training.
        with kept_random_states(student):
            self.plan = TrainingPlan(1, False, 0)
            activations = saved_bytes(lambda: self.losses(longest)["loss"], student.parameters())
        state = max(lengths) * student.feature_size * student.model.dtype.itemsize
        checkpointed = checkpointed_bytes(activations, len(student.stack.layers), state)
        kept = 0 if self.images is None else self.images.expected_bytes(len(training_rows(len(self.examples), self.config)))
        free = free_bytes(student.model) - kept
        self.plan = plan_training(self.config, len(batch), training_bytes(trained), activations, checkpointed, free)
        if self.plan.micro_batch_size < len(batch) or self.plan.gradient_checkpointing:
            again = ", with gradient checkpointing" if self.plan.gradient_checkpointing else ""
            print(f"memory: gradients are accumulated over {self.plan.micro_batch_size} examples at a time{again}")


@contextmanager
def temporarily_merged(
    student: VLM, full_model: VLM, config: RecoveryConfig, trained: Sequence[nn.Parameter], folder: Path | None = None
) -> Iterator[None]:
    """Merge LoRA and the like into the weights within the block, after `recover`.

    The full model shares these weights, so that it must not be used in the block, and there is no second copy in memory:
    they are written to a file in `folder`, and read again after the block, when the student has lost its LoRA.
    """
    dtype = full_model.model.dtype
    if config.method is None:
        yield
        return
    with _restored_afterwards(config.method.merged_weights(student), folder):
        _finish(student, config.method, dtype, trained)
        yield


def merge_into_copies(student: VLM, full_model: VLM, config: RecoveryConfig, trained: Sequence[nn.Parameter]) -> None:
    """Merge LoRA and the like into copies of the weights, after `recover_student`.

    The full model, which shares these weights, can still be used. The copies take the memory of what is merged: of LoRA, the
    linear layers of the decoder.
    """
    if config.method is not None:
        copy_parameters(student.model, config.method.merged_weights(student))
        _finish(student, config.method, full_model.model.dtype, trained)


def _finish(student: VLM, method: Method, dtype: torch.dtype, trained: Sequence[nn.Parameter]) -> None:
    method.finish(student)
    if student.model.dtype != dtype:  # asked first: it is the dtype of one parameter, which may have trained
        student.model.to(dtype)
    for parameter in trained:  # inserted ones train in 32 bits, too
        parameter.data = parameter.data.to(dtype)
    student.freeze()


@contextmanager
def _restored_afterwards(parameters: Sequence[Tensor], folder: Path | None) -> Iterator[None]:
    """Write parameters to a file in a folder (None: the system's), and read them again after the block."""
    with tempfile.TemporaryFile(dir=folder) as file:  # it has no name, so that it does not outlive a killed process
        for parameter in parameters:
            file.write(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
        file.flush()  # a full disk is an error before the block
        try:
            yield
        finally:
            file.seek(0)
            for parameter in parameters:
                content = bytearray(file.read(parameter.nbytes))
                parameter.data.copy_(torch.frombuffer(content, dtype=parameter.dtype).view(parameter.shape))


def recovery_loss(
    student: VLM,
    teacher: Teacher,
    task: Task,
    examples: Sequence[Any],
    config: RecoveryConfig,
    images: TowerOutputs | None = None,
) -> StepResult:
    """Return `loss`, which is minimised, and its terms, means over examples in nats: `divergence` and `cross_entropy`."""
    states = answer_states(student, task, examples, images)
    teacher_states = teacher.states(examples)
    targets = {name: t.to(states.device) for name, t in task.targets(examples).items()}
    logits = student.language_head()(states)
    logits = logits if logits.dtype == torch.float64 else logits.float()  # 16 bits lose small probabilities of a vocabulary
    # KL(teacher || student): the student has to cover all that the teacher finds likely.
    divergence = task.divergences(logits, teacher.logits(teacher_states).to(logits), targets).mean()
    cross_entropy = task.losses(logits, targets).mean()
    loss = config.distillation * divergence + config.cross_entropy * cross_entropy
    return {"loss": loss, "divergence": divergence, "cross_entropy": cross_entropy}
