"""The tables of models, tasks and environment ids.

A model or task of one's own gets its line with `register_model` or `register_task`; nothing else has to change.
Classes are named by "module:name", so that importing das_gym imports none of them.
"""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import register, registry

from das_gym.bundled import ASSETS


@dataclass(frozen=True)
class ModelEntry:
    """A kind of model.

    Attributes:
        name: How ids and settings name it.
        vlp: Its class, a `das_gym.models.base.VLP`, or that class's "module:name"; `load` likewise.
        load: Takes the path of a checkpoint, `generator=` for what the checkpoint lacks, and, where its signature has them,
            those of `image_size`, `dropout`, `bottleneck` and `skip_bottleneck` that are not the checkpoint's own. Gives the
            model, or what holds it as `vlp`, with the `heads` that came with it and a `report`; see
            `das_gym.models.checkpoints.Loaded`.
        assets: Folder of the bundled checkpoint, supernets and tables, or None.
        others: Folders of further bundled checkpoints: `checkpoint=` takes their last names as it takes paths.
        reads: `pairs` of a text and an image, or `prompts`: questions that it answers in words. Tasks say likewise what
            they give; only those that agree make an environment.
        options: Settings of `ProblemConfig` that `load` takes besides.
        say: Takes a pruned model that reads prompts, its processor, prompts whose answers need not be known, the title of a
            progress bar, and the most tokens of an answer. Gives its own answer to each in words, greedy. Or its
            "module:name"; None = it says none.
    """

    name: str
    vlp: Any
    load: Any = "das_gym.models.checkpoints:load_checkpoint"
    assets: Path | None = None
    others: tuple[Path, ...] = ()
    reads: str = "pairs"
    options: tuple[str, ...] = ("image_size",)
    say: Any = None

    @property
    def named(self) -> dict[str, Path]:
        """`others` by the names that `checkpoint=` takes."""
        return {folder.name: folder for folder in self.others}


@dataclass(frozen=True)
class TaskEntry:
    """A downstream task.

    Attributes:
        name: How settings and asset files name it.
        title: How ids name it.
        task: Its class, a `das_gym.tasks.base.Task`, or that class's "module:name".
        data: What its data are, in words.
        gives: `pairs` or `prompts`, see `ModelEntry.reads`.
    """

    name: str
    title: str
    task: Any
    data: str
    gives: str = "pairs"


@dataclass(frozen=True)
class EnvEntry:
    """One environment: its id, and what is searched on what.

    Attributes:
        id: As for `gymnasium.make`.
        model, task: Names in `MODELS` and `TASKS`.
        data: What the task's data are.
    """

    id: str
    model: str
    task: str
    data: str

    @property
    def tabular_id(self) -> str:
        """The id of the environment that answers from a table: `DAS-METER-VQA-Tabular-v0`."""
        return f"{self.id.removesuffix('-v0')}-Tabular-v0"

    @property
    def bundled(self) -> bool:
        """Whether all that it needs comes with das_gym: a model that brings its head, or a supernet."""
        entry = MODELS[self.model]
        needed = "config.json" if entry.reads == "prompts" else f"{self.task}_supernet.safetensors"
        return entry.assets is not None and (entry.assets / needed).is_file()

    @property
    def table(self) -> Path | None:
        """The bundled table of every subnet, if there is one."""
        folder = MODELS[self.model].assets
        path = None if folder is None else folder / f"{self.task}_table.npz"
        return path if path is not None and path.is_file() else None

    @property
    def short(self) -> str:
        """The name of its named configs: `meter_vqa`."""
        return f"{self.model.lower()}_{self.task}"


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry("METER", vlp="das_gym.models.meter.model:METER", assets=ASSETS / "meter_mini"),
        ModelEntry("ViLT", vlp="das_gym.models.vilt.model:ViLT", assets=ASSETS / "vilt_mini"),
        ModelEntry(
            "VLM",
            vlp="das_gym.models.transformers.model:VLM",
            load="das_gym.models.transformers.loading:load_vlm",
            assets=ASSETS / "smolvlm_mini",
            others=(ASSETS / "llava_mini",),
            reads="prompts",
            options=("tokenizer", "units", "vision", "dtype", "device_map", "trust_remote_code"),
            say="das_gym.models.transformers.generation:generate_answers",
        ),
    )
}
"""Every model by name."""

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry("vqa", "VQA", "das_gym.tasks.vqa.task:VQATask", "Shapes-VQA (bundled), VQAv2's files, arrow"),
        TaskEntry("nlvr2", "NLVR2", "das_gym.tasks.nlvr2.task:NLVR2Task", "Shapes-NLVR2 (bundled), NLVR2's files, arrow"),
        TaskEntry(
            "retrieval",
            "F30K",
            "das_gym.tasks.retrieval.task:RetrievalTask",
            "Shapes captions (bundled), Karpathy's, arrow",
        ),
        TaskEntry(
            "snli_ve", "SNLI-VE", "das_gym.tasks.snli_ve.task:SNLIVETask", "Shapes-SNLI-VE (bundled), SNLI-VE's files, arrow"
        ),
        TaskEntry(
            "answering",
            "Answering",
            "das_gym.tasks.answering.task:AnsweringTask",
            "Shapes-VQA (bundled), LLaVA's conversations, Slake, ScienceQA, AID, VQAv2's and NLVR2's files",
            gives="prompts",
        ),
    )
}
"""Every task by name."""

DEFAULT_MODEL, DEFAULT_TASK, DEFAULT_ENV = "METER", "vqa", "DAS-METER-VQA-v0"
"""What a person gets who names none."""

DATA_SETS = dict.fromkeys(("llava_slake", "llava_aid20", "llava_aid50", "scienceqa"), "DAS-VLM-Answering-v0") | {
    "meter_coco": "DAS-METER-F30K-v0",
    "vilt_coco": "DAS-ViLT-F30K-v0",
}
"""Named configs after data sets of the paper, and the environment of each; `data_root` names the files."""

REWARD_THRESHOLDS = {
    "DAS-METER-VQA-Tabular-v0": 0.8111,
    "DAS-METER-NLVR2-Tabular-v0": 0.8024,
    "DAS-METER-F30K-Tabular-v0": 0.7085,
    "DAS-ViLT-VQA-Tabular-v0": 0.6655,
    "DAS-ViLT-NLVR2-Tabular-v0": 0.7925,
    "DAS-ViLT-F30K-Tabular-v0": 0.7173,
    "DAS-VLM-Answering-Tabular-v0": 0.9205,
}
"""What the best mask of a bundled table earns at the default settings, rounded down: `reward_threshold` of the specs.

A test reads the tables and says so. Specs have no `max_episode_steps`: every episode ends by itself, after n_layers steps at
the latest, and a limit would wrap what `make` returns.
"""

REGISTERED_IN: dict[str, str] = {}
"""Module of a person's own in which a model or task was registered, by the entry's name: what commands have to be given by
`use=`."""

ENVIRONMENTS: dict[str, EnvEntry] = {}
"""Every pair of a model and a task that go together, by id; `register_all` fills it."""


def many_objectives(id: str) -> str:
    """The id of an environment's form with a vector for a reward: `DAS-METER-VQA-MO-v0`."""
    return f"{id.removesuffix('-v0')}-MO-v0"


def find_environment(model: str, task: str) -> EnvEntry:
    """The environment of a model and a task, keys of `MODELS` and `TASKS`.

    Raises:
        ValueError: they do not go together.
    """
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
    """What "module:name" names; what is no text stays what it is.

    Raises:
        ValueError: the text has another form, or there is no such module or name in it.
    """
    try:
        return pkgutil.resolve_name(name) if isinstance(name, str) else name
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported ({error})") from error


def register_model(entry: ModelEntry) -> None:
    """Add a model, or replace the one of that name, with an environment for every task that it can be asked.

    Raises:
        TypeError: it is no `ModelEntry`, or its class does not offer what a model has to; the text names all that it
            lacks. A class given as "module:name" is checked when it is loaded.
        ValueError: its name cannot be part of an id, or differs from another model's in case alone.
    """
    _check_entry(entry, ModelEntry)
    _check_word("name", entry.name)
    _check_distinct("name", entry, MODELS)
    if not isinstance(entry.vlp, str):
        from das_gym.models.base import check_class  # importing das_gym does not import torch

        check_class(entry.vlp)
    MODELS[entry.name] = entry
    _remember(entry.name, sys._getframe(1).f_globals)
    register_all()


def register_task(entry: TaskEntry) -> None:
    """Add a task, or replace the one of that name, with an environment for every model that can be asked it.

    Raises:
        TypeError: it is no `TaskEntry`, or its class does not offer what a task has to; the text names all that it lacks.
            A class given as "module:name" is checked when it is loaded.
        ValueError: its name or title cannot be part of an id, or its title is another task's.
    """
    _check_entry(entry, TaskEntry)
    for field in ("name", "title"):
        _check_word(field, getattr(entry, field))
        _check_distinct(field, entry, TASKS)
    if not isinstance(entry.task, str):
        from das_gym.tasks.base import check_task  # importing das_gym does not import torch

        check_task(entry.task, entry.name)
    if entry.name in TASKS and TASKS[entry.name].title != entry.title:
        _forget(entry.name)
    TASKS[entry.name] = entry
    _remember(entry.name, sys._getframe(1).f_globals)
    register_all()


def _forget(task: str) -> None:
    """Take back the ids of a task."""
    for entry in [entry for entry in ENVIRONMENTS.values() if entry.task == task]:
        del ENVIRONMENTS[entry.id]
        for id in (entry.id, entry.tabular_id):
            registry.pop(id, None)
            registry.pop(many_objectives(id), None)


def _remember(name: str, caller: Mapping[str, Any]) -> None:
    """Note the module that registers an entry; a script is called as it would be imported."""
    module = str(caller.get("__name__", "__main__"))
    if module == "__main__":
        module = Path(caller["__file__"]).stem if "__file__" in caller else "MODULE"
    if not module.startswith("das_gym."):
        REGISTERED_IN[name] = module


def _check_entry(entry: object, wanted: type[ModelEntry] | type[TaskEntry]) -> None:
    """Refuse what is not the entry that a function registers."""
    if not isinstance(entry, wanted):
        kinds = {ModelEntry: "register_model", TaskEntry: "register_task"}
        other = kinds.get(type(entry), kinds[wanted])
        way_out = f"pass it to {other}" if other != kinds[wanted] else f"pass a das_gym.{wanted.__name__}"
        raise TypeError(f"{kinds[wanted]} takes a {wanted.__name__}, not a {type(entry).__name__}: {way_out}")


def _check_distinct(field: str, entry: ModelEntry | TaskEntry, table: Mapping[str, Any]) -> None:
    """Refuse an entry whose field differs from that of another one in case alone, or not at all."""
    word = getattr(entry, field)
    for other in table.values():
        if other.name != entry.name and getattr(other, field).lower() == word.lower():
            kind = type(entry).__name__.removesuffix("Entry").lower()
            raise ValueError(f"{field}={word!r} is that of the {kind} {other.name!r}; give {entry.name!r} another")


def _check_word(field: str, word: object) -> None:
    """Refuse what an id cannot hold."""
    if not isinstance(word, str) or not re.fullmatch(r"\w+", word, re.ASCII):
        raise ValueError(f"{field}={word!r} cannot be part of an id such as DAS-METER-VQA-v0; use letters, digits and _")


SUITE_IDS = {
    "DAS-Suite-v0": ("das_gym.envs.suite_env:SuiteEnv", "das_gym.envs.suite_env:SuiteVectorEnv"),
    "DAS-Suite-Search-v0": ("das_gym.envs.suite_search_env:SuiteSearchEnv", None),
}
"""The environments of many problems: id to class, and to that of its vector form."""


def register_all() -> None:
    """Register every environment, with a model, from a table and of a suite; calling it twice does no harm."""
    for id, (alone, vector) in SUITE_IDS.items():
        if id not in registry:
            register(id=id, entry_point=alone, vector_entry_point=vector, order_enforce=False, disable_env_checker=True)
    pairs = ((model, task) for model in MODELS.values() for task in TASKS.values() if model.reads == task.gives)
    for model, task in pairs:
        entry = EnvEntry(f"DAS-{model.name}-{task.title}-v0", model.name, task.name, task.data)
        ENVIRONMENTS[entry.id] = entry
        for id, form in ((entry.id, "Skip"), (entry.tabular_id, "Tabular")):
            if (many := many_objectives(id)) not in registry:
                register(
                    id=many,
                    entry_point="das_gym.envs.mo_env:make_env",
                    vector_entry_point="das_gym.envs.mo_env:make_vector_env",
                    kwargs={
                        "env": f"das_gym.envs.{form.lower()}_env:{form}Env",
                        "model": entry.model,
                        "task": entry.task,
                    },
                    order_enforce=False,
                    disable_env_checker=True,  # it wants a number for a reward
                )
            if id not in registry:
                register(
                    id=id,
                    entry_point=f"das_gym.envs.{form.lower()}_env:{form}Env",
                    vector_entry_point=f"das_gym.envs.{form.lower()}_env:{form}VectorEnv",
                    kwargs={"model": entry.model, "task": entry.task},
                    reward_threshold=REWARD_THRESHOLDS.get(id),
                    order_enforce=False,  # `make` returns the environment itself: episodes are short, and checked here
                    disable_env_checker=True,  # the tests run Gymnasium's checker, and SB3's
                )
