"""The tables of models, tasks and environment ids.

A model or task of one's own gets its line with `register_model` or `register_task`; nothing else has to change.
Classes are named by "module:name", so that importing das_gym imports none of them.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import register, registry

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class ModelEntry:
    """A kind of model.

    Attributes:
        name: How ids and settings name it.
        vlp: Its class, a `das_gym.models.base.VLP`, or that class's "module:name"; the next two likewise.
        load: Takes the path of a checkpoint and `generator=`, gives something with `vlp`, the model, and `heads`, the
            tensors of each head that came with it by the head's name; see `das_gym.models.checkpoints.Loaded`.
        transform: Takes an RGB picture, a size and a patch size in pixels, gives (3, height, width) float32.
        max_text_length: Longest text in tokens, unless one is asked for.
        spare_positions: Text positions of the model that no token uses.
        assets: Folder of the bundled checkpoint, supernets and tables, or None.
    """

    name: str
    vlp: Any
    transform: Any
    load: Any = "das_gym.models.checkpoints:load_checkpoint"
    max_text_length: int = 50
    spare_positions: int = 0
    assets: Path | None = None


@dataclass(frozen=True)
class TaskEntry:
    """A downstream task.

    Attributes:
        name: How settings and asset files name it.
        title: How ids name it.
        task: Its class, a `das_gym.tasks.base.Task`, or that class's "module:name".
        data: What its data are, in words.
    """

    name: str
    title: str
    task: Any
    data: str


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
        """Whether a supernet of it comes with das_gym."""
        folder = MODELS[self.model].assets
        return folder is not None and (folder / f"{self.task}_supernet.safetensors").is_file()

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
            transform="das_gym.models.meter.inputs:meter_transform",
            max_text_length=50,
            spare_positions=2,  # RoBERTa counts positions from 2 on
            assets=ASSETS / "meter_mini",
        ),
        ModelEntry(
            "ViLT",
            vlp="das_gym.models.vilt.model:ViLT",
            transform="das_gym.models.meter.inputs:vilt_transform",
            max_text_length=40,
            assets=ASSETS / "vilt_mini",
        ),
    )
}
"""Every model by name. Longest texts are those of the released scripts (VQA)."""

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
    )
}
"""Every task by name."""


ENVIRONMENTS: dict[str, EnvEntry] = {}
"""Every pair of a model and a task, by id; `register_all` fills it."""


def find_environment(model: str, task: str) -> EnvEntry:
    """The environment of a model and a task, keys of `MODELS` and `TASKS`."""
    return ENVIRONMENTS[f"DAS-{model}-{TASKS[task].title}-v0"]


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
    """Add a model, or replace the one of that name, with an environment for every task.

    Raises:
        ValueError: its name cannot be part of an id.
    """
    _check_word("name", entry.name)
    MODELS[entry.name] = entry
    register_all()


def register_task(entry: TaskEntry) -> None:
    """Add a task, or replace the one of that name, with an environment for every model.

    Raises:
        ValueError: its name or title cannot be part of an id, or its title is another task's.
    """
    _check_word("name", entry.name)
    _check_word("title", entry.title)
    other = next((other for other in TASKS.values() if other.title == entry.title and other.name != entry.name), None)
    if other is not None:
        raise ValueError(f"title={entry.title!r} is that of the task {other.name!r}; give {entry.name!r} another")
    TASKS[entry.name] = entry
    register_all()


def _check_word(field: str, word: str) -> None:
    """Refuse what an id cannot hold."""
    if not re.fullmatch(r"\w+", word, re.ASCII):
        raise ValueError(f"{field}={word!r} cannot be part of an id such as DAS-METER-VQA-v0; use letters, digits and _")


def register_all() -> None:
    """Register every environment, with a model and from a table; calling it twice does no harm."""
    pairs = ((model, task) for model in MODELS.values() for task in TASKS.values())
    for model, task in pairs:
        entry = EnvEntry(f"DAS-{model.name}-{task.title}-v0", model.name, task.name, task.data)
        ENVIRONMENTS[entry.id] = entry
        for id, form in ((entry.id, "Skip"), (entry.tabular_id, "Tabular")):
            if id not in registry:
                register(
                    id=id,
                    entry_point=f"das_gym.envs.{form.lower()}_env:{form}Env",
                    vector_entry_point=f"das_gym.envs.{form.lower()}_vector_env:{form}VectorEnv",
                    kwargs={"model": entry.model, "task": entry.task},
                    order_enforce=False,  # `make` returns the environment itself: episodes are short, and checked here
                    disable_env_checker=True,  # the tests run Gymnasium's checker, and SB3's
                )
