"""What the CPU computes, a GPU computes, too: run by `test_devices.py` in a process that has `strict_cuda`."""

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt import evaluate
from das_gym.adapt.export.command import run_export
from das_gym.adapt.finished_runs import JOINT_RECORD, RECORD, EvaluateSettings, ExportSettings
from das_gym.adapt.run_commands import adapt, das, shrink
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.shrinking import measuring, verifying
from das_gym.adapt.shrinking import shrink as shrink_module
from das_gym.adapt.step_loss import make_loss_and_trainer
from das_gym.agents.run_commands import search

from das_gym.commands.recorded import run_folder
from das_gym.commands.settings import flatten_settings
from das_gym.engine.evaluator import Evaluator
from das_gym.files import read_json
from das_gym.models import base
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits
from das_gym.problem.problem import build_problem
from das_gym.problem.statistic_inputs import measure_activity, measure_sensitivity
from tests.devices import strict_cuda
from tests.models.transformers import tiny
from tests.small_world import load_supernet
from tests.tasks.answering import making

DEVICES = ("cpu", "cuda")
PAIRS = [(model, task) for model in ("METER", "ViLT") for task in ("vqa", "nlvr2", "retrieval")]
SETTINGS = [
    *({"model": model, "task": task} for model, task in PAIRS),
    *({"model": "VLM", "task": "answering", **more} for more in ({}, {"vision": True}, {"units": "sublayers"})),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Any]:
    """A tiny decoder with images, and data of three tasks."""
    place = tmp_path_factory.mktemp("given")
    for name in ("text", "choices"):
        (place / name).mkdir()
    making.llava_folder(place / "answering", train=12, val=6, test=6)
    tiny.text_folder(place / "text")
    colours = [{"question": f"what colour is {n}?", "options": ["red", "green", "blue"], "answer": n % 3} for n in range(30)]
    making.write_lines(place / "choices" / "a.jsonl", colours)
    return {"checkpoint": str(tiny.save("llava", place / "llava")), "data": place}


def load(device: str, batch: int = 8, **settings: Any) -> Any:
    return build_problem(ProblemConfig(device=device, eval_batch_size=batch, **settings))


def draw_masks(units: int, count: int, skipped: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    masks = np.zeros((count, units), bool)
    for mask in masks:
        mask[rng.choice(units, skipped, replace=False)] = True
    return masks


def assert_close(found: dict[str, Any], atol: float = 1e-4) -> None:
    for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True):
        np.testing.assert_allclose(np.asarray(cuda, float), np.asarray(cpu, float), atol=atol, rtol=1e-3)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_scores_and_statistics(settings):
    found = {}
    for device in DEVICES:
        problem = load(device, **settings)
        examples = problem.splits.reward[:12]
        masks = draw_masks(len(problem.vlp.layers), 4, 2)
        scores = problem.evaluator.evaluate(masks, examples, divergences=True)
        each = problem.evaluator.evaluate_each(masks, examples)
        activity = measure_activity(problem.evaluator, examples)
        found[device] = [scores.losses, scores.metrics, scores.divergences, each.losses, *vars(activity).values()]
        if problem.backbone.vlp.streams_apart:
            found[device] += vars(measure_sensitivity(problem.evaluator, examples)).values()
    assert_close(found)


@pytest.mark.parametrize("task", ["text", "choices"])
def test_scores_of_other_tasks(folders, task):
    settings = {"model": "VLM", "task": task, "checkpoint": folders["checkpoint"], "data_root": str(folders["data"] / task)}
    found = {}
    for device in DEVICES:
        problem = load(device, **settings)
        scores = problem.evaluator.evaluate(draw_masks(4, 3, 1), problem.splits.reward, divergences=True)
        found[device] = [scores.losses, scores.metrics, scores.divergences]
    assert_close(found)


@pytest.mark.parametrize("more", [{}, {"agent": "bayes", "racing": True}], ids=["plain", "racing"])
def test_search(tmp_path, more):
    found = {}
    for device in DEVICES:
        env = {"device": device, "reward_examples": 32}
        settings = {
            "skip_num": 3,
            "evaluations": 6,
            "masks_per_turn": 3,
            "runs_dir": str(tmp_path / device),
            "env_kwargs": env,
        }
        record = read_json(run_folder(search.run(flatten_settings(settings | more))) / "search.json")
        found[device] = [record["mask"], record["loss"], record["metric"]]
    assert_close(found)


def numbers_of(tree: Any) -> list[float]:
    """The losses and metrics in a record."""
    if isinstance(tree, list):
        return [x for value in tree if isinstance(value, dict | list) for x in numbers_of(value)]
    own = [tree[name] for name in ("loss", "metric", "score") if name in tree]
    return (
        [*own, *(x for value in tree.values() if isinstance(value, dict | list) for x in numbers_of(value))] if tree else []
    )


def test_finetune_and_das(tmp_path, shapes_folder, capsys):
    train = {"steps": 4, "batch_size": 8}
    given = {"problem": {"data_root": str(shapes_folder)}, "train": train, "mask": [0, 1] * 6}
    joint = {"search_epochs": 2, "warmup_epochs": 1, "batch_size": 16, "reward_examples": 8, "finetune_epochs": 1}
    for command, name, settings in (
        (adapt, RECORD, given),
        (das, JOINT_RECORD, {"problem": given["problem"], "das": joint}),
    ):
        found = {}
        for device in DEVICES:
            words = flatten_settings(
                {**settings, "runs_dir": str(tmp_path / device), "problem": {**given["problem"], "device": device}}
            )
            folder = run_folder(command.run(words))
            record = read_json(folder / name)
            subnet, examples, _ = evaluate.load(EvaluateSettings(str(folder), device=device, limit=8))
            found[device] = [numbers_of(record["models"]), evaluate.evaluate(subnet, examples, "").loss]
            written = run_export(ExportSettings(str(folder), out=str(tmp_path / f"{device}-{name}")))  # a model on `auto`
            assert written.difference < 1e-3
        assert found["cpu"][0]
        assert_close(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"recover": "lora"},
        {"recover": "linear"},
        {"recover": "linear+lora"},
        {"units": "sublayers", "mask": [1, 0, 0, 1, 1, 1, 0, 0]},
        {"task": "text"},
        {"task": "choices"},
    ],
    ids=lambda s: next(iter(s.values())),
)
def test_shrink(folders, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(measuring, "LATENCY_BLOCKS", 1)
    monkeypatch.setattr(shrink_module, "verify", lambda *_: verifying.Verification(3, 0.0, ("with a cache",)))
    task = settings.get("task", "answering")
    given = {"checkpoint": folders["checkpoint"], "data_root": str(folders["data"] / task), "control": False}
    given |= {"mask": [0, 1, 0, 0], "train": {"steps": 3}}
    found = {}
    for device in DEVICES:
        place = {"runs_dir": str(tmp_path / device), "out": str(tmp_path / f"{device}-out"), "device": device}
        record = read_json(run_folder(shrink.run(flatten_settings(given | settings | place))) / "shrink.json")
        found[device] = [[model["loss"], model["score"]] for model in record["models"]]
    assert_close(found)


@pytest.mark.filterwarnings("ignore:the training goes on on other devices")
@pytest.mark.parametrize("first", DEVICES)
def test_training_goes_on_on_the_other_device(tmp_path, tiny_kwargs, first):
    second = DEVICES[1 - DEVICES.index(first)]

    def train(device: str, checkpoint: Path | None, stop: int = 6) -> list[Any]:
        config = ProblemConfig(device=device, **tiny_kwargs)
        splits = load_splits(config)
        model = load_supernet(config, splits)
        settings = TrainingConfig(steps=6, batch_size=8, micro_batch_size=4, save_every=1)
        step_loss, trainer = make_loss_and_trainer(model, splits.train, settings, checkpoint)
        losses = []

        def step(number: int) -> Any:
            if number == stop:
                raise KeyboardInterrupt
            return step_loss.parts(number, np.arange(12) % 3 == 0)

        try:
            trainer.run(step, "training", log=lambda name, value, _: losses.append(value))
        except KeyboardInterrupt:
            return []
        return [losses, *(p.detach().cpu().numpy() for p in model.head.parameters())]

    train(first, tmp_path / "checkpoint.pt", stop=3)
    strict_cuda.reset()
    assert_close({"cpu": train("cpu", None), "cuda": train(second, tmp_path / "checkpoint.pt")})


def test_a_training_step_waits_once(tiny_kwargs):
    config = ProblemConfig(device="cuda", **tiny_kwargs)
    splits = load_splits(config)
    settings = TrainingConfig(steps=6, batch_size=8, micro_batch_size=2)
    step_loss, trainer = make_loss_and_trainer(load_supernet(config, splits), splits.train[:8], settings, None)
    for _ in range(2):
        strict_cuda.reset()
        trainer.take_step(lambda number: step_loss.parts(number, np.arange(12) % 3 == 0))
    assert strict_cuda.waits() <= 2


def turn(problem: Any, masks: np.ndarray) -> tuple[int, int]:
    """The waits of a turn with encoder outputs that are known, and its operators."""
    evaluator = problem.evaluator
    examples = problem.splits.reward[:32]
    evaluator.evaluate(masks, examples)
    evaluator.forget()
    strict_cuda.reset()
    evaluator.evaluate(masks, examples)
    return strict_cuda.waits(), sum(strict_cuda.native.operators().values())


@pytest.mark.parametrize(
    ("settings", "skipped", "waits", "operators"),
    [
        ({"model": "METER", "task": "vqa"}, 4, 3, 7000),
        ({"model": "VLM", "task": "answering"}, 2, 6, 6500),
        ({"model": "VLM", "task": "answering", "vision": True}, 2, 12, 8000),
    ],
    ids=["METER", "VLM", "vision"],
)
def test_a_turn_waits_a_few_times(settings, skipped, waits, operators):
    problem = load("cuda", batch=32, **settings)
    found = turn(problem, draw_masks(len(problem.vlp.layers), 16, skipped))
    assert found[0] <= waits
    assert found[1] <= operators


def test_the_first_turn_of_METER_waits_a_few_times():  # noqa: N802
    problem = load("cuda", batch=32, model="METER", task="vqa")
    evaluator = problem.evaluator.with_empty_caches()
    strict_cuda.reset()
    evaluator.evaluate(draw_masks(12, 16, 4), problem.splits.reward[:32])
    assert strict_cuda.waits() <= 8


@pytest.mark.parametrize(
    ("task", "owner", "name", "old", "new"),
    [
        ("vqa", base, "pad_and_stack", "to_device(real[:, None, None], hidden.device)", "real[:, None, None]"),
        ("nlvr2", Evaluator, "_leaves", "to_device(t, self.vlp.device)", "t"),
        ("vqa", Evaluator, "_leaves", ".cpu().double()", ".double()"),
        ("vqa", base.VLP, "encode_items", "to_device(tensor, self.device)", "tensor"),
    ],
    ids=["attention mask", "targets", "no copy to the CPU", "batch"],
)
def test_planted_mistakes_are_found(monkeypatch, task, owner, name, old, new):
    problem = load("cuda", model="METER", task=task)
    examples = problem.splits.reward[:8]
    problem.evaluator.with_empty_caches().evaluate(np.eye(12, dtype=bool)[:2], examples)
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(original)))
    assert old in source
    scope = dict(vars(sys.modules[original.__module__]))
    exec("from __future__ import annotations\n" + source.replace(old, new), scope)
    monkeypatch.setattr(owner, name, scope[name])
    with pytest.raises((RuntimeError, TypeError), match=r"device|cuda"):
        problem.evaluator.with_empty_caches().evaluate(np.eye(12, dtype=bool)[:2], examples)
