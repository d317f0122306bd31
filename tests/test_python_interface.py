"""The interface in Python on objects in memory: equal to folders and commands, polite, and clear about wrong arguments."""

import copy
import pickle
import random
from typing import Any

import datasets
import gymnasium
import numpy as np
import pytest
import torch
from das_gym.agents import Agent, compare, search
from das_gym.agents.run_commands import search as search_command
from PIL import Image

import das_gym
from das_gym.commands.recorded import run_folder
from das_gym.problem.problem import Problem
from tests.models.transformers.tiny import make, save

WORDS = ("red", "blue", "green", "round", "flat")


def answering_rows(count: int = 24) -> list[dict[str, Any]]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [
        {"image": Image.fromarray(own), "question": f"what is {n} ?", "answer": WORDS[n % 5]} for n, own in enumerate(pixels)
    ]


def text_rows(count: int = 24) -> list[dict[str, Any]]:
    return [{"text": " ".join(WORDS[(n * k) % 5] for k in range(1, 40)) + f" {n}"} for n in range(count)]


def choice_rows(count: int = 24) -> list[dict[str, Any]]:
    return [{"question": f"what is {n} ?", "choices": list(WORDS[:3]), "answer": n % 3} for n in range(count)]


ROWS = {"answering": answering_rows, "text": text_rows, "choices": choice_rows}
MODELS = {"answering": "llava", "text": "llama", "choices": "llama"}
SETTINGS: dict[str, dict[str, Any]] = {"answering": {}, "text": {"context": 16}, "choices": {}}


def parts_of(task: str) -> dict[str, datasets.Dataset]:
    rows = ROWS[task]()
    bounds = {"train": rows[:12], "validation": rows[12:18], "test": rows[18:]}
    return {name: datasets.Dataset.from_list(each) for name, each in bounds.items()}


@pytest.fixture(scope="module", params=list(ROWS))
def case(request, tmp_path_factory) -> Any:
    """A task, a live model with its processor, rows, and the folders of the same."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    task = request.param
    folder = tmp_path_factory.mktemp(task)
    save(MODELS[task], folder / "model")
    parts = parts_of(task)
    datasets.DatasetDict(parts).save_to_disk(folder / "data")
    auto = AutoModelForImageTextToText if task == "answering" else AutoModelForCausalLM
    return task, auto.from_pretrained(folder / "model"), AutoProcessor.from_pretrained(folder / "model"), parts, folder


@pytest.mark.filterwarnings("ignore:the full model is no better than chance")
def test_a_search_of_live_objects_equals_that_of_the_command(case, tmp_path):
    task, model, processor, parts, folder = case
    problem = Problem.from_model(model, processor, task, **parts, **SETTINGS[task])
    found = search(problem, "random", skip_num=2, evaluations=np.int64(4), progress=False)
    words = {"env_id": f"DAS-VLM-{task.title()}-v0", "agent": "random", "skip_num": 2, "evaluations": 4}
    config = {"checkpoint": str(folder / "model"), "data_root": str(folder / "data"), **SETTINGS[task]}
    run = search_command.run({**words, "problem": config, "runs_dir": str(tmp_path)})
    command = das_gym.agents.SearchResult.load(run_folder(run))
    assert found.history == command.history
    assert (found.mask == command.mask).all()
    assert (found.mask.dtype, found.reward, found.fingerprint) == (bool, command.reward, command.fingerprint)
    as_dicts = {name: list(rows) for name, rows in parts.items()}
    again = Problem.from_model(model, processor, task, **as_dicts, **SETTINGS[task])
    masks = [[1, 0, 0, 0], [0, 1, 1, 0]]
    assert again.losses(masks).tolist() == problem.losses(np.array(masks, dtype=bool)).tolist()
    assert again.evaluate() == problem.evaluate(parts["test"])
    assert problem.evaluate().n == len(problem.splits.test)
    assert found.to_dataframe()["reward"].tolist() == [reward for turn in found.history for reward in turn.rewards]


@pytest.fixture(scope="module")
def live() -> tuple[Any, Any]:
    return make("llama")


@pytest.fixture(scope="module")
def problem(live) -> Problem:
    return Problem.from_model(*live, "text", train=text_rows(), context=16)


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


@pytest.mark.parametrize("agent", ["bayes", "ppo"])
def test_the_callers_model_and_random_state_stay_as_they_are(live, agent):
    model, tokenizer = live
    model.train()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    state = states()
    problem = Problem.from_model(model, tokenizer, "text", train=text_rows(), context=16)
    search(problem, agent, skip_num=1, evaluations=4, masks_per_turn=2, progress=False)
    problem.evaluate()
    assert states() == state
    assert model.training
    assert all(
        torch.equal(p, before[name][0]) and p.requires_grad == before[name][1] for name, p in model.named_parameters()
    )


def test_two_models_take_turns(problem):
    torch.manual_seed(1)
    other = Problem.from_model(*make("gpt2"), "text", train=text_rows(), context=16)
    first = [search(each, "random", skip_num=1, evaluations=3, progress=False) for each in (problem, other)]
    again = [search(each, "random", skip_num=1, evaluations=3, progress=False) for each in (problem, other)]
    assert first == again
    assert first[0].fingerprint != first[1].fingerprint


def test_a_model_that_was_trained_since_is_an_error():
    model, tokenizer = make("llama")
    problem = Problem.from_model(model, tokenizer, "text", train=text_rows(), context=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    for use in (problem.evaluate, lambda: problem.losses([[1, 0, 0, 0]]), lambda: search(problem, skip_num=1)):
        with pytest.raises(ValueError, match="has changed"):
            use()


def test_an_interrupt_leaves_the_problem_usable_and_the_search_resumable(problem, tmp_path):
    settings: dict[str, Any] = {"skip_num": 2, "evaluations": 6, "masks_per_turn": 1, "progress": False}
    whole = search(problem, "bayes", **settings)
    seen = []

    def stop(turn: Any) -> None:
        seen.append(turn)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(problem, "bayes", folder=tmp_path, callback=stop, **settings)
    assert search(problem, "bayes", folder=tmp_path, **settings) == whole
    other = Problem.from_model(*make("gpt2"), "text", train=text_rows(), context=16)
    with pytest.raises(ValueError, match="another `fingerprint`"):
        search(other, "bayes", folder=tmp_path, **settings)


class OwnAgent(Agent):
    def ask(self, n: int) -> np.ndarray:
        return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.rewards)


def test_own_agents_are_classes_or_functions(problem):
    by_class = search(problem, OwnAgent, skip_num=1, evaluations=3, progress=False)
    by_function = search(problem, lambda space, seed: OwnAgent(space, seed), skip_num=1, evaluations=3, progress=False)
    assert by_class.history == by_function.history
    table = compare(problem, ["random", OwnAgent], seeds=2, evaluations=3, skip_num=1, progress=False)
    assert [each.agent for each in table] == ["random", "OwnAgent"]
    assert {"mean_regret", "mean_regret_low", "mean_regret_high"} <= set(table.to_dataframe())
    assert "OwnAgent" in repr(table)


def test_environments_take_a_problem(problem):
    env = gymnasium.make("DAS-v0", problem=problem, skip_num=1)
    env.reset(seed=0)
    reward = env.step([1, 0, 0, 0])[1]
    assert env.unwrapped.scorer.problem is problem  # type: ignore[attr-defined]
    vector = gymnasium.make_vec("DAS-v0", num_envs=2, problem=problem, skip_num=1)
    vector.reset(seed=0)
    assert vector.step(np.array([[1, 0, 0, 0]] * 2))[1].tolist() == [reward] * 2
    assert das_gym.make_sb3_vec_env("DAS-v0", 2, problem=problem, skip_num=1).num_envs == 2
    assert copy.deepcopy(problem) is problem
    for fails in (lambda: pickle.dumps(env), lambda: pickle.dumps(problem), lambda: env.spec.to_json()):  # type: ignore[union-attr]
        with pytest.raises(TypeError, match="Problem"):
            fails()


def test_what_a_person_sees_is_short(problem):
    found = search(problem, "random", skip_num=1, evaluations=3, progress=False)
    for shown in (problem, found):
        assert len(repr(shown).splitlines()) < 12
        assert shown._repr_html_().startswith("<table>")
    assert len(repr(problem.evaluate()).splitlines()) == 1


WRONG: dict[str, tuple[Any, str]] = {
    "path_as_model": (lambda m, t, p: Problem.from_model("folder", t), "from_pretrained"),
    "processor_as_model": (lambda m, t, p: Problem.from_model(t, m, train=text_rows()), "`model`"),
    "path_as_processor": (lambda m, t, p: Problem.from_model(m, "folder", train=text_rows()), "`processor`"),
    "no_rows": (lambda m, t, p: Problem.from_model(m, t), "`train`"),
    "empty_rows": (lambda m, t, p: Problem.from_model(m, t, "text", train=[]), "`train` has no rows"),
    "path_as_rows": (lambda m, t, p: Problem.from_model(m, t, "text", train="folder"), "`train`"),
    "other_rows": (lambda m, t, p: Problem.from_model(m, t, "text", train=[{"txt": "a"}]), "text"),
    "other_task": (lambda m, t, p: Problem.from_model(m, t, "txt", train=text_rows()), "did you mean 'text'"),
    "misspelt": (lambda m, t, p: Problem.from_model(m, t, "text", train=text_rows(), skp="linear"), "did you mean 'skip'"),
    "of_folders": (lambda m, t, p: Problem.from_model(m, t, "text", train=text_rows(), checkpoint=m), "`checkpoint`"),
    "precision": (lambda m, t, p: Problem.from_model(m, t, "text", train=text_rows(), precision="bfloat16"), "`precision`"),
    "model_as_name": (lambda m, t, p: Problem.from_pretrained(m, "text"), "from_model"),
    "model_as_path": (lambda m, t, p: Problem.from_pretrained("VLM", "text", checkpoint=m), "from_model"),
    "rows_as_path": (lambda m, t, p: Problem.from_pretrained("VLM", "text", data_root=text_rows()), "from_model"),
    "env_checkpoint": (lambda m, t, p: gymnasium.make("DAS-VLM-Answering-v0", checkpoint=m), "from_model"),
    "env_data": (lambda m, t, p: gymnasium.make("DAS-VLM-Answering-v0", data_root=text_rows()), "from_model"),
    "env_without": (lambda m, t, p: gymnasium.make("DAS-v0"), "`problem`"),
    "env_model": (lambda m, t, p: gymnasium.make("DAS-v0", problem=m), "`problem`"),
    "env_skip": (lambda m, t, p: gymnasium.make("DAS-v0", problem=p, skip="linear"), "`skip`"),
    "search_model": (lambda m, t, p: search(m), "`problem`"),
    "search_id": (lambda m, t, p: search("DAS-Nope-v0"), "DAS-Nope"),
    "search_agent": (lambda m, t, p: search(p, "byes"), "did you mean 'bayes'"),
    "search_agent_instance": (lambda m, t, p: search(p, 3), "`agent`"),
    "search_class": (lambda m, t, p: search(p, dict), "`agent`"),
    "search_misspelt": (lambda m, t, p: search(p, evaluatons=3), "did you mean 'evaluations'"),
    "search_skip": (lambda m, t, p: search(p, skip="linear"), "`skip`"),
    "search_out_of_reach": (lambda m, t, p: search(p, macs_saved=0.999), "`macs_saved`"),
    "search_seed": (lambda m, t, p: search(p, seed=-1), "`seed`"),
    "compare_agent": (lambda m, t, p: compare(p, ["byes"]), "did you mean 'bayes'"),
    "evaluate_metric": (lambda m, t, p: p.evaluate(metric="none"), "metric"),
    "masks": (lambda m, t, p: p.losses([[1, 0]]), "masks"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_line(live, problem, name):
    call, word = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=word) as caught:
        call(*live, problem)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 330


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, for peft
def test_a_model_wrapped_by_peft_has_to_be_merged(live):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(make("llama")[0], peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        Problem.from_model(wrapped, live[1], "text", train=text_rows())
