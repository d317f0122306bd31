"""Which mask `python -m adapt` uses, the settings of its search, and the settings it rejects."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from das_gym.adapt.choosing import choose
from das_gym.adapt.run_commands import adapt as ex
from das_gym.adapt.settings import AdaptSettings

from das_gym.commands.recorded import RunError
from das_gym.engine.evaluator import Evaluator
from das_gym.files import write_json

ANSWER = [1, 1, 0, 0]


def record_of(**env_kwargs: Any) -> dict[str, Any]:
    """A search's record."""
    scores = {"reward": 0.5, "loss": 1.0, "metric": 0.5, "macs": 80, "macs_saved": 0.2}
    about = {
        "env_id": "DAS-METER-VQA-v0",
        "env_kwargs": {"skip_num": 2, **env_kwargs},
        "agent": "bandit",
        "agent_kwargs": {},
    }
    answered = {"mask": ANSWER, **scores, "skipped_layers": ["a", "b"], "n_skipped": 2}
    numbers = {"seed": 0, "masks_per_turn": 1, "macs_full": 100, "evaluations": 0}
    rest = {"layer_names": list("abcd"), "versions": {}}
    return {"format": 1, **about, **answered, **numbers, **rest}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """The folder of run 1 among runs in `tmp_path`."""
    write_json(tmp_path / "1" / "run.json", {"status": "COMPLETED"})
    return tmp_path / "1"


def test_choose_names_an_unknown_environment(run_folder):
    write_json(run_folder / "search.json", record_of() | {"env_id": "DAS-Mine-VQA-v0"})
    with pytest.raises(ValueError, match=r"DAS-Mine-VQA-v0, which is not registered.*plugins=<module>"):
        choose(AdaptSettings(search_run=1, runs_dir=str(run_folder.parent)))


def test_record_cannot_set_output_paths(run_folder):
    write_json(run_folder / "search.json", record_of(encoder_cache="/anywhere", workers="ray"))
    problem = choose(AdaptSettings(search_run=1, runs_dir=str(run_folder.parent))).problem
    assert (problem.encoder_cache, problem.workers) == (None, None)


def test_mask_of_wrong_width_is_rejected_before_the_run(tmp_path):
    with pytest.raises(RunError, match="`mask`"):
        ex.run({"mask": [1, 0], "runs_dir": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "text"),
    [({}, "val2014.* cannot be read"), ({"train": {"itm_weight": 0.5}}, "itm_weight")],
)
def test_unsupported_training_is_rejected_before_a_search(given, text, tmp_path, small_kwargs, monkeypatch):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: pytest.fail("it searched"))
    data = Path(small_kwargs["data_root"])
    if not given:
        data = tmp_path / "data"
        shutil.copytree(small_kwargs["data_root"], data)
        for path in (data / "val2014").glob("*"):
            path.write_bytes(b"no image " + path.name.encode())
    with pytest.raises(RunError, match=text):
        ex.run({**small_kwargs, **given, "data_root": str(data), "runs_dir": str(tmp_path / "runs")})
    assert not (tmp_path / "runs").exists()


def front_indices(folder: Path) -> None:
    """What `python -m agents pareto` leaves, in all that adapt reads."""
    points = [
        {"mask": mask, "saved": 0.1 * sum(mask), "loss": 0.5, "skipped_layers": ["a"] * sum(mask)}
        for mask in ([0, 0, 0, 0], ANSWER)
    ]
    write_json(
        folder / "front.json",
        {"env_id": "DAS-ViLT-VQA-Tabular-v0", "env_kwargs": {"data_root": str(folder)}, "points": points, "cost": "MACs"},
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"search_run": 1}, "run 1 is a Pareto front: give the number of one of its points"),
        ({"search_run": 1, "point": -1}, "`point`.*got -1"),
        ({"search_run": 1, "point": 2}, r"points 0\.\.1; use one of them"),
        ({"mask": (0, 2)}, r"`mask\[1\]` is out of range"),
    ],
)
def test_choice_that_is_impossible_is_rejected(run_folder, given, text):
    front_indices(run_folder)
    with pytest.raises(ValueError, match=text):
        choose(AdaptSettings(**given, runs_dir=str(run_folder.parent)))


def test_run_without_a_front_is_named(run_folder):
    with pytest.raises(FileNotFoundError, match=r"run 1 is not a finished front \(`das-agents pareto with resume=1`"):
        choose(AdaptSettings(search_run=1, point=0, runs_dir=str(run_folder.parent)))
