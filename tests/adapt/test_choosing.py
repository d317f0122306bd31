"""Which problem scores the masks of a search that runs first, and which problem a search of before has."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from das_gym.adapt.choosing import choice_from_run, scored_problem, search_first
from das_gym.adapt.run_commands import adapt as adapt_command
from das_gym.agents.run_commands import pareto as pareto_command
from das_gym.agents.run_commands import search as search_command
from das_gym.agents.searching.scorer import open_scorer
from das_gym.agents.settings import SearchConfig

from das_gym.commands.recorded import RecordedCommand, Run, RunError, required_folder
from das_gym.commands.runs import RunSettings
from das_gym.files import ASSETS, read_json, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.registration import DEFAULT_ENV
from das_gym.tables.table import SubnetTable

ORIGIN = SimpleNamespace(config=ProblemConfig(device="cpu"))
LOADED: Any = SimpleNamespace(backbone=SimpleNamespace(origin=ORIGIN))


def search(env_id: str = DEFAULT_ENV, **env_kwargs: Any) -> SearchConfig:
    return SearchConfig(env_id, skip_num=4, env_kwargs=env_kwargs, problem=ProblemConfig(device="cpu"))


def test_the_loaded_problem_scores_a_search_of_the_same_model_and_data():
    assert scored_problem(search(reward_examples=8), LOADED) is LOADED


@pytest.mark.parametrize("other", [search("DAS-METER-VQA-Tabular-v0"), search(tree_gib=1.0), search(workers="ray")])
def test_other_settings_of_the_search_are_not_ignored(other):
    assert scored_problem(other, LOADED) is None


def test_a_search_that_ended_before_its_run_was_killed_is_drawn_logged_and_printed_again(tmp_path, capsys):
    logged: list[list[Any]] = [[], []]
    runs = [
        SimpleNamespace(
            observers=[], log_scalar=lambda *args, to=to: to.append(args), add_artifact=lambda *args, to=to: to.append(args)
        )
        for to in logged
    ]
    config = SearchConfig("DAS-METER-VQA-Tabular-v0", skip_num=4, agent="random", evaluations=7)
    result = search_first(config, runs[0], tmp_path, None)
    printed = capsys.readouterr().out
    (tmp_path / "search.png").unlink()
    assert search_first(config, runs[1], tmp_path, None) == result
    assert (tmp_path / "search.png").is_file()
    assert logged[1] == logged[0]
    assert len(logged[0]) == 3 * 4 + 2
    assert capsys.readouterr().out == printed


def test_searches_of_a_comparison_keep_their_files_in_their_folders(tmp_path):
    def search_twice(settings: RunSettings, run: Run) -> None:
        for name in ("search_1", "search_2"):
            config = SearchConfig("DAS-METER-VQA-Tabular-v0", skip_num=int(name[-1]), agent="random", evaluations=3)
            search_first(config, run, required_folder(run) / name, None)

    RecordedCommand("agents trial", RunSettings, search_twice).run({"runs_dir": str(tmp_path)})
    files = [f"{folder}/{name}" for folder in ("search_1", "search_2") for name in ("search.png", "search.json")]
    assert read_json(tmp_path / "1" / "run.json")["artifacts"] == files
    assert not list((tmp_path / "1").glob("search.*"))  # as if the run were one search
    assert read_json(tmp_path / "1" / "search_1" / "search.json")["n_skipped"] == 1


def test_an_unknown_setting_of_a_search_on_a_loaded_problem():
    with pytest.raises(TypeError, match="reward_exampels"):
        open_scorer(DEFAULT_ENV, {"reward_exampels": 8}, problem=LOADED)


def test_a_search_on_a_table_of_a_model_that_is_not_bundled_needs_its_checkpoint(tmp_path, capsys):
    found: dict[str, Any] = {"env_id": "DAS-SmolLM2-Text-Tabular-v0", "agent": "random", "evaluations": 3}
    with pytest.raises(RunError, match=r"expected `skip_num` of 0\.\.3"):
        search_command.run({**found, "skip_num": 4, "runs_dir": str(tmp_path)})
    search_command.run({**found, "runs_dir": str(tmp_path)})
    assert "Next: das-adapt shrink with search_run=1 checkpoint=DIR data_root=DIR" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`checkpoint` is missing: DAS-SmolLM2-Text-Tabular-v0"):
        choice_from_run(str(tmp_path), 1, {})
    choice = choice_from_run(str(tmp_path), 1, {"checkpoint": str(tmp_path)})
    assert choice.problem.checkpoint == str(tmp_path)
    assert (choice.mask.shape, choice.mask.sum()) == ((30,), 3)
    record = read_json(tmp_path / "1" / "search.json")
    names = [f"decoder.{n}.{kind}" for n in range(14) for kind in ("attention", "mlp")]
    write_json(tmp_path / "1" / "search.json", {**record, "layer_names": [*names, "decoder.14.mlp", "decoder.15.mlp"]})
    assert choice_from_run(str(tmp_path), 1, {"checkpoint": str(tmp_path)}).problem.units == "sublayers"


def test_a_table_brings_the_settings_of_its_problem(tmp_path):
    bundled = SubnetTable.load(ASSETS / "meter_mini" / "vqa_table.npz")
    table = tmp_path / "table.npz"
    replace(bundled, meta=replace(bundled.meta, settings={"max_text_length": 20})).save(table)
    found: dict[str, Any] = {"env_id": "DAS-METER-VQA-Tabular-v0", "env_kwargs": {"table": str(table)}}
    search_command.run({**found, "agent": "random", "evaluations": 3, "runs_dir": str(tmp_path)})
    pareto_command.run({**found, "evaluations": 40, "runs_dir": str(tmp_path)})
    for run, point in ((1, None), (2, 0)):
        assert choice_from_run(str(tmp_path), run, {}, point).problem.max_text_length == 20
        assert choice_from_run(str(tmp_path), run, {"max_text_length": 30}, point).problem.max_text_length == 30


@pytest.mark.slow
def test_a_table_of_an_own_model_needs_its_checkpoint(tmp_path):
    bundled = SubnetTable.load(ASSETS / "meter_mini" / "vqa_table.npz")
    table = tmp_path / "table.npz"
    replace(bundled, meta=replace(bundled.meta, hashes={**bundled.meta.hashes, "model": 16 * "0"})).save(table)
    found: dict[str, Any] = {"env_id": "DAS-METER-VQA-Tabular-v0", "env_kwargs": {"table": str(table)}}
    search_command.run({**found, "agent": "random", "evaluations": 3, "runs_dir": str(tmp_path)})
    pareto_command.run({**found, "evaluations": 40, "runs_dir": str(tmp_path)})
    with pytest.raises(RunError, match="`checkpoint` is missing"):
        adapt_command.run({"search_run": 1, "runs_dir": str(tmp_path)})
    other = bundled.meta.hashes["model"]
    for run, point in ((1, None), (2, 0)):
        choice = choice_from_run(str(tmp_path), run, {}, point)
        choice.check_model(16 * "0")
        with pytest.raises(ValueError, match="`checkpoint` is missing"):
            choice.check_model(other)
        with pytest.warns(UserWarning, match=other):
            choice_from_run(str(tmp_path), run, {"image_size": 64}, point).check_model(other)
