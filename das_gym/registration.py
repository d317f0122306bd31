"""The tables of models, tasks, environment ids, and metrics of generated answers.

`register_model`, `register_task` and `register_metric` add further ones; nothing else has to change.
Classes are named by "module:name", so that importing das_gym imports none of them.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import register, registry

from das_gym.files import ASSETS
from das_gym.names import PARTS, add_entry

DEFAULT_REWARD = "exp_neg_loss"
"""The reward of tasks that name no other."""


@dataclass(frozen=True)
class ModelEntry:
    """A kind of model.

    Attributes:
        name: Name in ids and settings.
        vlp: Class, a subclass of `das_gym.models.base.VLP`, or its "module:name".
        load: Function that loads a checkpoint, or its "module:name". It is called with the path and `generator=`, to draw
            weights that the checkpoint lacks. Of `image_size`, `dropout`, `bottleneck`, `skip_bottleneck` and `options`, it
            gets those in its signature. It returns a `das_gym.models.checkpoints.LoadedCheckpoint`, or a `VLP`.
        wrap: Function that wraps a model in memory, or its "module:name"; None if models are only loaded from folders. It
            is called with model and processor, `generator=`, `units=` and `vision=`, and returns a `VLP`.
        assets: Folder of the bundled checkpoint, supernets and tables, or None.
        others: Folders of further bundled checkpoints. `checkpoint=` takes their names.
        layer_counts: Keys of config.json that hold a number of layers, and how many units each of these layers has.
        layer_tensors: Regular expression for the beginning of the names of a unit's tensors in the authors' files.
        whole_types: Values of `model_type` in config.json for which every layer of the decoder can be skipped.
        reads: `pairs` of a text and an image, or `prompts`: questions that it answers in words. It has an environment for
            each task whose `gives` is the same.
        options: Settings of `ProblemConfig` that `load` takes in addition.
        tokenizer: Function that loads the tokenizer of a folder, or its "module:name", for tasks that split texts into
            tokens. It is called with the folder, and whether code in it may run.
        generate: Function that answers prompts in words, greedily, or its "module:name"; None if the model cannot. It is
            called with a pruned model, its processor, prompts, the title of a progress bar and the maximum number of tokens.
        score: Function that scores the answers of a model that answers in words, or its "module:name". It is called with the
            model, the task, examples, the title of a progress bar and the name of a metric or None.
    """

    name: str
    vlp: Any
    load: Any = "das_gym.models.checkpoints:load_checkpoint"
    wrap: Any = None
    assets: Path | None = None
    others: tuple[Path, ...] = ()
    layer_counts: Mapping[str, int] = field(default_factory=dict)
    layer_tensors: str = ""
    whole_types: tuple[str, ...] = ()
    reads: str = "pairs"
    options: tuple[str, ...] = ("image_size",)
    tokenizer: Any = None
    generate: Any = None
    score: Any = None

    @property
    def reads_prompts(self) -> bool:
        """Whether the model answers questions in words. It then needs no adapters: skipped layers are left out."""
        return self.reads == "prompts"

    @property
    def named(self) -> dict[str, Path]:
        """The folders in `others` by name, as `checkpoint=` takes it."""
        return {folder.name: folder for folder in self.others}


@dataclass(frozen=True)
class TaskEntry:
    """A downstream task.

    Attributes:
        name: Name in settings and asset files.
        title: Name in ids.
        task: Class, a subclass of `das_gym.tasks.base.Task`, or its "module:name".
        data: Description of its data.
        gives: `pairs` or `prompts`, see `ModelEntry.reads`.
        needs_data: Whether there are no bundled data, so that `data_root` has to be given.
        reward: The default reward of masks, see `das_gym.problem.rewards.REWARDS`.
        parts: The parts that its `load_part` takes, such as `test`; some data formats have more.
    """

    name: str
    title: str
    task: Any
    data: str
    gives: str = "pairs"
    needs_data: bool = False
    reward: str = DEFAULT_REWARD
    parts: tuple[str, ...] = PARTS


@dataclass(frozen=True)
class EnvEntry:
    """One environment: a model and a task.

    Attributes:
        id: Id for `gymnasium.make`.
        model, task: Names in `MODELS` and `TASKS`.
        data: Description of the task's data.
    """

    id: str
    model: str
    task: str
    data: str

    @property
    def tabular_id(self) -> str:
        """The id of the environment that reads scores from a table: `DAS-METER-VQA-Tabular-v0`."""
        return f"{self.id.removesuffix('-v0')}-Tabular-v0"

    @property
    def per_input_id(self) -> str:
        """The id of the environment in which an episode is one example: `DAS-METER-VQA-PerInput-v0`."""
        return f"{self.id.removesuffix('-v0')}-PerInput-v0"

    @property
    def is_bundled(self) -> bool:
        """Whether model and data are bundled with das_gym, and a supernet if the model needs one."""
        entry = MODELS[self.model]
        if TASKS[self.task].needs_data:
            return False
        needed = "config.json" if entry.reads_prompts else f"{self.task}_supernet.safetensors"
        return entry.assets is not None and (entry.assets / needed).is_file()

    @property
    def table(self) -> Path | None:
        """The bundled table of every subnet, if there is one."""
        assets = MODELS[self.model].assets
        path = None if assets is None else assets / f"{self.task}_table.npz"
        return path if path is not None and path.is_file() else None

    @property
    def short(self) -> str:
        """The name of its named configs: `meter_vqa`."""
        return f"{self.model.lower()}_{self.task}"


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "METER",
            vlp="das_gym.models.meter.model:METER",
            assets=ASSETS / "meter_mini",
            layer_counts={"fusion_layers": 2},
            layer_tensors=r"cross_modal_(?:text|image)_layers\.\d+\.",
        ),
        ModelEntry(
            "ViLT",
            vlp="das_gym.models.vilt.model:ViLT",
            assets=ASSETS / "vilt_mini",
            layer_counts={"num_layers": 1, "num_hidden_layers": 1},
            layer_tensors=r"transformer\.blocks\.\d+\.",
        ),
        ModelEntry(
            "VLM",
            vlp="das_gym.models.transformers.model:VLM",
            load="das_gym.models.transformers.loading:load_vlm",
            wrap="das_gym.models.transformers.loading:wrap_live",
            assets=ASSETS / "smolvlm_mini",
            others=(ASSETS / "llava_mini",),
            layer_counts={"num_hidden_layers": 1},
            whole_types=(
                *("llama", "llava", "llava_next", "llava_onevision", "smolvlm", "idefics3", "qwen2_vl", "qwen2_5_vl"),
                *("paligemma", "gemma3", "internvl", "mllama", "lfm2_vl", "glm4_moe", "gpt2"),
            ),
            reads="prompts",
            options=("tokenizer", "units", "vision", "dtype", "device_map", "trust_remote_code"),
            tokenizer="das_gym.models.transformers.inputs:load_folder_tokenizer",
            generate="das_gym.models.transformers.generation:generate_answers",
            score="das_gym.adapt.shrinking.measuring:score_model",
        ),
    )
}
"""Every model by name."""

VQAV2_PARTS = (*PARTS, "train2014", "val2014", "test2015", "test-dev2015")

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry(
            "vqa",
            "VQA",
            "das_gym.tasks.vqa.task:VQATask",
            "Shapes-VQA (bundled), VQAv2's files, arrow",
            parts=VQAV2_PARTS,
        ),
        TaskEntry("nlvr2", "NLVR2", "das_gym.tasks.nlvr2:NLVR2Task", "Shapes-NLVR2 (bundled), NLVR2's files, arrow"),
        TaskEntry(
            "retrieval", "F30K", "das_gym.tasks.retrieval:RetrievalTask", "Shapes captions (bundled), Karpathy's, arrow"
        ),
        TaskEntry(
            "answering",
            "Answering",
            "das_gym.tasks.answering.task:AnsweringTask",
            "Shapes-VQA (bundled), LLaVA's conversations, parquet, Slake, ScienceQA, AID, VQAv2's and NLVR2's files",
            gives="prompts",
            parts=(*VQAV2_PARTS, "questions"),
        ),
        TaskEntry(
            "text",
            "Text",
            "das_gym.tasks.text:TextTask",
            ".txt, .jsonl, parquet, save_to_disk (none bundled)",
            gives="prompts",
            needs_data=True,
            reward="perplexity_ratio",
        ),
        TaskEntry(
            "choices",
            "Choices",
            "das_gym.tasks.choices:ChoicesTask",
            ".json, .jsonl, parquet, save_to_disk: ScienceQA, ARC, HellaSwag and others (none bundled)",
            gives="prompts",
            needs_data=True,
        ),
    )
}
"""Every task by name."""

DEFAULT_MODEL = "METER"
DEFAULT_TASK = "vqa"
DEFAULT_ENV = "DAS-METER-VQA-v0"
"""The defaults of commands and functions."""

LIVE_ENV = "DAS-v0"
"""The environment of a `das_gym.Problem` that is passed to it."""

DATA_SETS = dict.fromkeys(("llava_slake", "llava_aid20", "llava_aid50", "scienceqa"), "DAS-VLM-Answering-v0") | {
    "meter_coco": "DAS-METER-F30K-v0",
    "vilt_coco": "DAS-ViLT-F30K-v0",
}
"""Named configs for the paper's data sets, and their environments. The user gives the files with `data_root`."""

REWARD_THRESHOLDS = {
    "DAS-METER-VQA-Tabular-v0": 0.8118,
    "DAS-METER-NLVR2-Tabular-v0": 0.8039,
    "DAS-METER-F30K-Tabular-v0": 0.7418,
    "DAS-ViLT-VQA-Tabular-v0": 0.6655,
    "DAS-ViLT-NLVR2-Tabular-v0": 0.7712,
    "DAS-ViLT-F30K-Tabular-v0": 0.7279,
    "DAS-VLM-Answering-Tabular-v0": 0.9224,
    "DAS-LLaVA-Answering-Tabular-v0": 0.8897,
    "DAS-SmolLM2-Text-Tabular-v0": 0.7959,
    "DAS-SmolVLM135M-Answering-Tabular-v0": 0.9720,
}
"""`reward_threshold` of the specs: the best reward in each bundled table at the default settings, rounded down.

A test compares them with the tables. Specs have no `max_episode_steps`: every episode ends by itself, and
a limit would wrap the environment.
"""

METRICS: dict[str, Callable[[Any, str], float]] = {}
"""Scores of a generated answer to an example, 0..1, by name."""

ENVIRONMENTS: dict[str, EnvEntry] = {}
"""Every pair of a model and a task that fit, by id; `register_all` fills it."""


CHECKPOINT_TABLES = {
    "DAS-LLaVA-Answering-Tabular-v0": ("DAS-VLM-Answering-v0", "llava_mini"),
    "DAS-SmolLM2-Text-Tabular-v0": ("DAS-VLM-Text-v0", "smollm2"),
    "DAS-SmolVLM135M-Answering-Tabular-v0": ("DAS-VLM-Answering-v0", "smolvlm135m"),
}
"""Ids of bundled tables of further checkpoints, to their environment and folder in `ASSETS`."""


def checkpoint_table(id: str) -> Path:
    """Return the file of a table in `CHECKPOINT_TABLES`."""
    live, folder = CHECKPOINT_TABLES[id]
    return ASSETS / folder / f"{ENVIRONMENTS[live].task}_table.npz"


def env_entry(id: str) -> EnvEntry | None:
    """Return the environment that has an id, with or without `module:`, itself or for a table; None if there is none."""
    name = id.rpartition(":")[2]
    live = CHECKPOINT_TABLES.get(name, (name,))[0]
    return next((entry for entry in ENVIRONMENTS.values() if live in (entry.id, entry.tabular_id)), None)


def is_tabular(id: str) -> bool:
    """Return True if an id, or `module:id`, is a registered environment of das_gym that looks scores up in a table."""
    return id.rpartition(":")[2] in {*(entry.tabular_id for entry in ENVIRONMENTS.values()), *CHECKPOINT_TABLES}


def default_reward(id: str) -> str:
    """Return the name of the default reward of an environment's task, given the environment's id."""
    entry = env_entry(id)
    return DEFAULT_REWARD if entry is None else TASKS[entry.task].reward


def find_environment(model: str, task: str) -> EnvEntry:
    """Return the environment of a model and a task, keys of `MODELS` and `TASKS`."""
    if MODELS[model].reads != TASKS[task].gives:
        fitting = [name for name, other in TASKS.items() if other.gives == MODELS[model].reads]
        raise ValueError(f"task={task!r} is not supported by {model}: choose from {', '.join(fitting)}")
    return ENVIRONMENTS[f"DAS-{model}-{TASKS[task].title}-v0"]


def named_environments() -> dict[str, EnvEntry]:
    """Return every environment by the name of its named configs, `meter_vqa`, and by `DATA_SETS`."""
    data_sets = {name: ENVIRONMENTS[id] for name, id in DATA_SETS.items()}
    return data_sets | {entry.short: entry for entry in ENVIRONMENTS.values()}


def named_problems() -> dict[str, dict[str, str]]:
    """Return the named configs `meter_vqa`, ...: the settings `model` and `task` of every environment."""
    return {name: {"model": entry.model, "task": entry.task} for name, entry in named_environments().items()}


def find_class(name: str | Any) -> Any:
    """Return the object that "module:name" names. Anything but a string is returned unchanged."""
    try:
        return pkgutil.resolve_name(name) if isinstance(name, str) else name
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported ({error})") from error


def register_model(entry: ModelEntry) -> None:
    """Add a model, or replace the one of that name, and register an environment for every task that it supports.

    Raises:
        TypeError: `entry` is no `ModelEntry`, or its class lacks methods. "module:name" is checked when it is loaded.
        ValueError: The name cannot be part of an id, or is another model's.

    Complete example: `examples/own_model.py`.
    """
    _check_entry(entry, ModelEntry, MODELS, "name")
    if not isinstance(entry.vlp, str):
        from das_gym.models.base import check_class  # importing das_gym does not import torch

        check_class(entry.vlp)
    MODELS[entry.name] = entry
    register_all()


def register_task(entry: TaskEntry) -> None:
    """Add a task, or replace the one of that name, and register an environment for every model that supports it.

    Raises:
        TypeError: `entry` is no `TaskEntry`, or its class lacks methods. "module:name" is checked when it is loaded.
        ValueError: The name or title cannot be part of an id, or is another task's.

    Complete example: `examples/own_task.py`.
    """
    _check_entry(entry, TaskEntry, TASKS, "name", "title")
    if not isinstance(entry.task, str):
        from das_gym.tasks.base import check_task  # importing das_gym does not import torch

        check_task(entry.task, entry.name)
    TASKS[entry.name] = entry
    register_all()


def register_metric(name: str, function: Callable[[Any, str], float]) -> None:
    """Add a metric of generated answers: `adapt shrink` and `adapt evaluate` then take `metric=NAME`.

    Args:
        name: Its name.
        function: Called with an example (`question`, `answer`, `answers`, `options`, `kind`) and the generated text. It
            returns a score, 0..1, larger is better.

    Raises:
        TypeError: `function` cannot be called.
        ValueError: The name is not allowed or already registered.

    Example:
        >>> from das_gym import register_metric
        >>> register_metric("contains", lambda example, text: float(example.answer in text))
    """
    if not callable(function):
        raise TypeError(f"`function` is not callable: got {function!r}, expected function(example, text) -> score")
    add_entry(METRICS, name, function, "metric")


def score_texts(metric: str, examples: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
    """Return the (n,) float64 scores of generated answers by a metric of `METRICS`; ValueError for one outside 0..1."""
    scores = np.array([METRICS[metric](e, text) for e, text in zip(examples, texts, strict=True)], dtype=np.float64)
    for example, score in zip(examples, scores, strict=True):
        if not 0 <= score <= 1:
            raise ValueError(f"metric {metric!r} is out of range on {example.key}: got {score}, expected 0..1")
    return scores


def _check_entry(entry: Any, kind: type[Any], table: Mapping[str, Any], *fields: str) -> None:
    """Raise for another kind of entry, or a field that cannot be part of an id or differs at most in case from another's."""
    if not isinstance(entry, kind):
        raise TypeError(f"expected a das_gym.{kind.__name__}, got a {type(entry).__name__}")
    for name in fields:
        word = getattr(entry, name)
        if not isinstance(word, str) or not re.fullmatch(r"\w+", word, re.ASCII):
            raise ValueError(f"`{name}` cannot be part of an id: got {word!r}, expected letters, digits and _")
        for other in table.values():
            if other.name != entry.name and getattr(other, name).lower() == word.lower():
                raise ValueError(f"{name}={word!r} is already the {name} of {other.name!r}; choose another")


def register_all() -> None:
    """Register the environments of all models and tasks that are not registered yet."""
    live = "das_gym.envs.skip_env:Skip"
    tabular = "das_gym.envs.tabular_env:Tabular"
    per_input = "das_gym.envs.per_input:PerInput"
    for model in MODELS.values():
        for task in TASKS.values():
            if model.reads != task.gives:
                continue
            entry = EnvEntry(f"DAS-{model.name}-{task.title}-v0", model.name, task.name, task.data)
            ENVIRONMENTS[entry.id] = entry
            for id, env in ((entry.id, live), (entry.tabular_id, tabular), (entry.per_input_id, per_input)):
                _register(id, env, {"model": entry.model, "task": entry.task})
    _register(LIVE_ENV, "das_gym.envs.per_input:Live", {"problem": ""})  # which is no Problem: one has to be given
    for id, (live_id, _) in CHECKPOINT_TABLES.items():
        if id in registry:  # a model that replaces a bundled one need not have its checkpoints
            continue
        entry = ENVIRONMENTS[live_id]
        settings = {"model": entry.model, "task": entry.task, "table": str(checkpoint_table(id))}
        _register(id, tabular, settings)


def _register(id: str, env: str, kwargs: dict[str, Any]) -> None:
    """Register an environment, with the classes `<env>Env` and `<env>VectorEnv`."""
    if id not in registry:
        register(
            id,
            f"{env}Env",
            vector_entry_point=f"{env}VectorEnv",
            kwargs=kwargs,
            reward_threshold=REWARD_THRESHOLDS.get(id),
            order_enforce=False,  # `make` returns the environment itself: episodes are short, and checked here
            disable_env_checker=True,  # the tests run Gymnasium's checker, and Stable-Baselines3's
        )
