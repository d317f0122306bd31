"""Fine-tuned subnets on disk: a folder with `adapter.safetensors`, and a record of the model that it belongs to."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.adapt.finished_runs import JOINT_RECORD, RECORD, SUBNET_FILE, FinishedRun, SubnetSettings, find_record

from das_gym.commands.commandline import format_command
from das_gym.commands.progress import quiet_loading
from das_gym.commands.runs import COMPARISON, PluginSettings, library_versions
from das_gym.commands.settings import build
from das_gym.commands.trust import import_plugins, imported_plugins, trusted_settings
from das_gym.files import METADATA_KEY, expand_home, explain_damage, read_json, write_json
from das_gym.models.base import fingerprint
from das_gym.models.checkpoints import load_checkpoint
from das_gym.models.formats import MAX_SIDE
from das_gym.names import check_names
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, recorded_settings
from das_gym.problem.loading import AdaptedModel, Backbone, load_backbone, new_head, pick_device, restore, task_class
from das_gym.registration import MODELS, TASKS

FORMAT = "das_gym adapt 1"


def load_finished(settings: SubnetSettings, device: str, task: str = "") -> AdaptedModel:
    """Load the model of a finished run on a device; a folder of transformers is loaded with `task`."""
    run = settings.finished
    changes: dict[str, Any] = {"device": device}
    if settings.checkpoint is not None:
        changes["checkpoint"] = settings.checkpoint
    if settings.trust_remote_code:
        changes["trust_remote_code"] = True
    if run.record is not None:
        return _load_recorded(run, changes)
    if task and METADATA_KEY not in run.content:
        return load_transformers_model(run.model, task, device, settings.trust_remote_code)
    return load_subnet(run.model, **changes)


def load_subnet(path: str | os.PathLike[str], *, plugins: str | Sequence[str] = (), **changes: Any) -> AdaptedModel:
    """Return a fine-tuned subnet without its skipped layers, in eval mode.

    Args:
        path: The folder of a run of `python -m adapt` or `python -m adapt das`, or one that `save` wrote; an adapter file,
            such as `python -m adapt compare` keeps; or a folder that `python -m adapt export` wrote, whose code is not run.
        plugins: Modules to import first, as `plugins=` of the run. Modules in a record are not imported without it.
        **changes: Fields of `ProblemConfig` that differ from the record, such as `device="cpu"`, or `checkpoint` if it was
            moved. An exported folder takes `device` and `max_text_length` only.

    Raises:
        FileNotFoundError: There is no record or no adapter file, or the recorded checkpoint does not exist.
        ValueError: The file holds a supernet or belongs to another model, or `plugins` or `trust_remote_code` of the run are
            not given again.

    Example:
        `load_subnet("runs/2").backbone.vlp.pruned_mask` is the mask of run 2.
    """
    import_plugins(plugins)
    path = expand_home(path)
    config = path / "config.json"
    if config.is_file() and f'"{METADATA_KEY}":'.encode() in config.read_bytes():  # `export` wrote it
        check_names(changes, ("device", "max_text_length"), "setting")
        return load_exported(path, **changes)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected the folder of a finished run, or an adapter file.")
    folder = path if path.is_dir() else path.parent
    file = path if path.suffix == ".safetensors" else folder / SUBNET_FILE
    # A comparison keeps one record for the files of all its methods.
    record = find_record(folder, (RECORD, JOINT_RECORD) if file.name == SUBNET_FILE else (COMPARISON, RECORD, JOINT_RECORD))
    return _load_recorded(FinishedRun(file, record, {} if record is None else read_json(record)), changes)


def _load_recorded(run: FinishedRun, changes: Mapping[str, Any]) -> AdaptedModel:
    """Return the subnet of a run; `changes` are fields of `ProblemConfig` that differ from its record."""
    file, record, content, _ = run
    adaptation = Adaptation.load(file) if file.is_file() else None
    if adaptation is not None and adaptation.mask is None and adaptation.method is None:
        raise ValueError(
            f"{file} holds a supernet, not a subnet. Pass it as supernet=, or fine-tune a mask: `{format_command('adapt')}`."
        )
    if record is None or adaptation is None:
        missing = f"{RECORD} or {JOINT_RECORD}" if record is None else file.name
        raise FileNotFoundError(
            f"There is no {missing} in {file.parent}. Give the folder of a finished run of `{format_command('adapt')}`."
        )
    check_names(changes, (field.name for field in dataclasses.fields(ProblemConfig)))
    with explain_damage(record, "fine-tune it again"):
        recorded = dict(content["problem"])
        settings = dict(content["model_settings"])
        for name in ("supernet", "data_root"):  # they need not exist any more
            if recorded.get(name) and not Path(recorded[name]).exists():
                recorded[name] = None
        modules = build(PluginSettings, {"plugins": content.get("plugins", ())}).plugins
    recorded = trusted_settings(record, modules, {k: v for k, v in recorded.items() if k not in changes})
    with explain_damage(record, "import the module that registers it (plugins=MODULE), or fine-tune it again"):
        problem = build(ProblemConfig, {**recorded, **changes})
    backbone = load_backbone(problem, **settings)
    if adaptation.method is None:  # adapters are part of the model
        subnet = restore(backbone, adaptation, problem.task, file)
    else:  # a method inserts modules before its parameters fit
        from das_gym.adapt.methods.base import restore_adaptation

        subnet = restore_adaptation(backbone, adaptation, problem.task, file)
    subnet.head.eval()
    return subnet


@dataclass(frozen=True)
class _Exported:
    """The fields that are read from the config.json of an exported folder."""

    task: str
    labels: tuple[str, ...]
    image_size: int
    max_text_length: int
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # the folder may come from anyone
        if not (1 <= self.image_size <= MAX_SIDE and 1 <= self.max_text_length <= 2**16):
            raise ValueError(f"image_size={self.image_size!r}, max_text_length={self.max_text_length}")


def load_exported(folder: Path, device: str = "auto", max_text_length: int | None = None) -> AdaptedModel:
    """Return the subnet in a folder that `export` wrote. None of the folder's code is run."""
    config = read_json(folder / "config.json")
    with explain_damage(folder / "config.json", "export the run again"):
        names = [field.name for field in dataclasses.fields(_Exported)]
        about = build(_Exported, {name: value for name, value in config[METADATA_KEY].items() if name in names})
    trusted_settings(folder, about.plugins, {})
    with explain_damage(folder / "config.json", "export the run again"):
        check_names([about.task], TASKS, "task", own=True)
    loaded = load_checkpoint(folder, image_size=about.image_size)
    vlp = loaded.vlp
    # Nothing of it is trained, and dropout would change its answers.
    vlp.freeze()
    with quiet_loading():  # transformers warns that it does not know the model's type when it looks for the tokenizer
        processor = vlp.make_processor(folder, max_text_length or about.max_text_length)
    task = task_class(about.task)(processor, about.labels)
    head = task.build_head(vlp.feature_size, vlp.head_size)
    tensors = next(iter(loaded.heads.values()), {})
    state = {name if name[:1].isdigit() else f"0.{name}": tensor for name, tensor in tensors.items()}
    shapes, wanted = ({name: tuple(t.shape) for name, t in some.items()} for some in (state, head.state_dict()))
    if shapes != wanted:
        raise ValueError(
            f"{folder} holds a head of {shapes or 'nothing'}, the task {task.name} needs {wanted}. Export the run again."
        )
    head.load_state_dict(state)
    place = pick_device(device)
    base = fingerprint(vlp)
    return AdaptedModel(Backbone(vlp.to(place), processor, base, loaded.heads), head.to(place).eval(), task)


def load_transformers_model(folder: Path, task: str, device: str, trust_remote_code: bool) -> AdaptedModel:
    """Return the transformers model in a folder, without adapters, with a task whose examples are prompts."""
    model = next(name for name, entry in MODELS.items() if entry.reads_prompts)
    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    config = ProblemConfig(model=model, task=task, checkpoint=str(folder), device=device, **options)
    backbone = load_backbone(config, only_runs=True)
    own = task_class(task)(backbone.processor)
    return AdaptedModel(backbone, new_head(backbone, own), own)


def save(
    subnet: AdaptedModel,
    folder: str | os.PathLike[str],
    info: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    name: str = RECORD,
    adaptation: Adaptation | None = None,
) -> Path:
    """Write a subnet's adapter file and then its record, so that `load_subnet(folder)` returns it.

    Args:
        subnet: As `load_subnet`, `new_subnet` or fine-tuning returns it.
        folder: The folder to write to; it is created if it does not exist.
        info: How it was made, JSON values, kept in the adapter file.
        record: More entries of the record, JSON values.
        name: Name of the record, `adapt.json` or `das.json`.
        adaptation: What was trained by a method of `das_gym.adapt.methods`. None is the model's own adapters and head.

    Returns:
        The record's path.

    Raises:
        ValueError: nothing was pruned, so it is a supernet; or its model was not loaded by `load_backbone`.
    """
    backbone = subnet.backbone
    folder = expand_home(folder)
    if adaptation is None and backbone.vlp.pruned_mask is None:
        raise ValueError("No layer was removed from this model: it is a supernet. Use `subnet.adaptation().save(file)`.")
    config = backbone.origin.config
    if config is None:
        raise ValueError("The model's checkpoint is not known. Load it by `das_gym.problem.loading.load_backbone`.")
    folder.mkdir(parents=True, exist_ok=True)
    trained = subnet.adaptation(**(info or {})) if adaptation is None else adaptation
    trained.save(folder / SUBNET_FILE)
    content = {
        "format": FORMAT,
        "problem": recorded_settings(dataclasses.asdict(config)),
        "model_settings": dict(backbone.origin.settings),
        **(record or {}),
        "plugins": imported_plugins(),
        "versions": library_versions(),
    }
    # The record last: a folder with a record is complete.
    write_json(folder / name, content)
    return folder / name
