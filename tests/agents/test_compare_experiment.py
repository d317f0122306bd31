import json

import pytest
from das_gym.agents.run_commands import compare as ex
from das_gym.agents.settings import CompareSettings

from das_gym.commands.recorded import RunError

TABULAR = "DAS-METER-VQA-Tabular-v0"


def test_compare_command_saves_record_and_figure(made_up_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agents = ["random", "bayes", "uniform", "ppo", "stable_baselines3:A2C"]
    settings = {"env_kwargs": {"table": str(made_up_table)}, "seeds": 5, "evaluations": 20, "masks_per_turn": 4}
    ex.run({**settings, "agents": agents}, ["meter_vqa"])
    folder = tmp_path / "runs" / "1"
    record = json.loads((folder / "compare.json").read_text())
    assert {row["agent"] for row in record["rows"]} == set(agents)
    assert [(trial["variant"], trial["seed"]) for trial in record["trials"][:6]] == [
        *((agent, 0) for agent in agents),
        ("random", 1),
    ]
    assert record["masks"] == 70
    assert record["settings"]["seeds"] == 5
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{TABULAR}, k = 4 (70 masks), 5 seeds" in printed
    assert all(agent in printed for agent in agents)


def test_a_stopped_comparison_repeats_no_trial(made_up_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"env_kwargs": {"table": str(made_up_table)}, "seeds": 3, "evaluations": 9, "agents": ["random", "uniform"]}
    ex.run(settings)
    record = tmp_path / "runs" / "1" / "compare.json"
    whole = json.loads(record.read_text())
    marked = [{**trial, "milliseconds": -1.0} for trial in whole["trials"][:3]]
    record.write_text(json.dumps({"trials": marked}))
    run = json.loads((record.parent / "run.json").read_text())
    (record.parent / "run.json").write_text(json.dumps({**run, "status": "INTERRUPTED"}))
    ex.run({"resume": 1})
    again = json.loads(record.read_text())
    assert [trial["milliseconds"] == -1.0 for trial in again["trials"]] == [True] * 4 + [False, True]  # a rule searches once
    assert again["rows"] == whole["rows"]


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"seeds": 0}, "`seeds` is out of range"),
        ({"live": True}, "'table'"),
        ({"agent_kwargs": {"bayse": {}}}, "agent_kwargs.bayse is given, but 'bayse' is not in `agents`"),
        ({"agents": ["bayes", "random", "bayes"]}, "`agents` has duplicates"),
        ({"macs_saved": 0.9}, "`macs_saved` is out of reach"),
        ({"agents": ["ppo"], "agent_kwargs": {"ppo": {"gama": 1}}}, "did you mean 'gamma'"),
    ],
)
def test_wrong_settings(update, text, made_up_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=text):
        ex.run(config_updates={"seeds": 1, "env_kwargs": {"table": str(made_up_table)}, **update})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"skip_num": -1}, "`skip_num` is out of range"),
        ({"agent_kwargs": {"bandit": {"learning_rate": "fast"}}}, "agent_kwargs.learning_rate='fast'"),
        ({"agent_kwargs": {"evolution": {"offspring": 0}}}, "`agent_kwargs.offspring` is out of range"),
        ({"agents": ["leave_one_out"], "agent_kwargs": {"leave_one_out": {"x": 1}}}, "unknown setting of agent"),
    ],
)
def test_settings_of_every_search_are_checked_with_those_of_the_comparison(given, text):
    with pytest.raises((ValueError, TypeError), match=text):
        CompareSettings(**given)


def test_an_id_without_its_version_is_compared_on_its_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ex.run({"env_id": "DAS-ViLT-VQA", "agents": ["random"], "seeds": 1, "evaluations": 3})
    assert (run.config["env_id"], run.config["problem"]["model"]) == ("DAS-ViLT-VQA-v0", "ViLT")
    assert json.loads((tmp_path / "runs" / "1" / "compare.json").read_text())["env_id"] == "DAS-ViLT-VQA-Tabular-v0"
