from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.agents import MaskSpace, make_agent
from das_gym.agents.commands import PROGRAM
from das_gym.agents.policy.network import EFFECTS, READS, PolicyEnsemble, PolicyInput, PolicyNetwork, unit_costs
from das_gym.agents.policy.training import PolicySettings, load_examples, mean_scaled, suite_masks, train_policy

from das_gym.problem.budget import Budget, Floats
from das_gym.problem.mask_space import every_mask
from das_gym.tables.suite import MAX_UNITS, Suite, load_suite

N = 8


def drawn_statistics(n: int = N) -> dict[str, Floats]:
    """Return random statistics of units in two streams."""
    rng = np.random.default_rng(0)
    return {**{name: rng.normal(size=n) for name in EFFECTS}, "stream": rng.permutation(n) % 2.0, "depth": rng.random(n)}


@pytest.fixture(scope="module")
def suite(made_up_suite: Path) -> Suite:
    return load_suite(made_up_suite, "train", budgets=("count", "macs", "latency"))


def random_policy(members: int = 2) -> PolicyEnsemble:
    """Return a policy whose corrections are not zero."""
    torch.manual_seed(0)
    policy = PolicyEnsemble(PolicyNetwork(width=8) for _ in range(members)).eval()
    for member in policy.members:
        torch.nn.init.normal_(member.unit.weight)
        torch.nn.init.normal_(member.pair[-1].weight)
    return policy


@pytest.fixture
def file(tmp_path: Path) -> str:
    random_policy().save(tmp_path / "policy.safetensors")
    return str(tmp_path / "policy.safetensors")


def observed(suite: Suite, row: int) -> dict[str, np.ndarray]:
    table = suite.problems[row].table
    return {name: table.statistic(name).astype(float) for name in READS}


def test_untrained_policy_takes_the_mask_with_the_least_cost(suite: Suite):
    masks = suite_masks(PolicyNetwork().eval(), suite)
    for row, problem in enumerate(suite.problems):
        kept = problem.table.masks[problem.budget.is_kept_by(problem.table.masks)]
        costs = unit_costs(observed(suite, row))
        assert masks[row, : problem.table.n_layers] @ costs == pytest.approx((kept @ costs).min(), abs=1e-6)


@torch.no_grad()
def test_policy_is_equivariant_to_the_order_of_units():
    masks, order = every_mask(N, 3), np.random.default_rng(0).permutation(N)
    statistics = drawn_statistics()
    moved = {name: values[order] for name, values in statistics.items()}
    policy = random_policy()
    found = policy(PolicyInput.of([statistics], masks))
    torch.testing.assert_close(policy(PolicyInput.of([moved], masks[:, order])), found, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_ensemble_averages_log_probabilities():
    policy, given = random_policy(), PolicyInput.of([drawn_statistics()], every_mask(N, 3))
    apart = [member(given) for member in policy.members]
    torch.testing.assert_close(policy(given), (apart[0] + apart[1]) / 2)
    torch.testing.assert_close(apart[0].exp().sum(dim=1), torch.ones(1))
    assert not torch.equal(*apart)


@pytest.mark.parametrize("width", [8, 10**6])  # networks of the latter would exhaust the memory
def test_load_rejects_tensors_that_do_not_match(tmp_path: Path, width: int):
    policy = random_policy()
    policy.members[0].unit = torch.nn.Linear(width, 1)
    policy.members[1].mix = torch.nn.Linear(3, 3)
    policy.save(tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged.*train one with `python -m agents policy`"):
        PolicyEnsemble.load(tmp_path / "policy.safetensors")


def test_load_rejects_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("das_gym.agents.policy.network.FORMAT", "das_gym policy 1")
        random_policy().save(tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match=r"old\.safetensors is not a policy of this version"):
        PolicyEnsemble.load(tmp_path / "old.safetensors")


def test_policy_takes_the_mask_of_its_file(file: str, suite: Suite, tmp_path: Path):
    wanted = suite_masks(random_policy(), suite)
    for row in (0, len(suite.problems) - 1):
        space = MaskSpace(suite.problems[row].budget)
        agent = make_agent("policy", space, 0, {"policy": file}, observed(suite, row))
        np.testing.assert_array_equal(agent.best(), wanted[row, : space.n_layers])
    with pytest.raises(ValueError, match=r"the policy needs `statistics=.*leave_one_out"):
        make_agent("policy", space, 0, {"policy": file}, {"depth": np.zeros(space.n_layers)})
    endless = {**observed(suite, row), "leave_one_out": np.full(space.n_layers, np.inf)}
    with pytest.raises(ValueError, match="the policy reads leave_one_out, which is not finite for every layer"):
        make_agent("policy", space, 0, {"policy": file}, endless)
    with pytest.raises(FileNotFoundError, match="none"):
        make_agent("policy", space, 0, {"policy": str(tmp_path / "none")}, observed(suite, row))


def test_policy_of_many_units_skips_those_with_the_least_costs(file: str):
    budget, statistics = Budget(MAX_UNITS + 1, 5), drawn_statistics(MAX_UNITS + 1)
    mask = make_agent("policy", MaskSpace(budget), 0, {"policy": file}, statistics).best()
    assert set(np.flatnonzero(mask)) == set(np.argsort(sum(statistics[name] for name in EFFECTS))[:5])


def test_examples_want_the_masks_with_the_highest_rewards(suite: Suite):
    wanted = load_examples(suite)[0].wanted
    best = suite.problems[0].rewards[suite.problems[0].budget.is_kept_by(suite.problems[0].table.masks)].argmax()
    assert int(wanted[0].argmax()) == best
    torch.testing.assert_close(wanted.sum(dim=1), torch.ones(len(wanted)))


def test_policy_settings_reject_nothing_to_train():
    for name in ("members", "steps"):
        with pytest.raises(ValueError, match=f"`{name}` is out of range"):
            PolicySettings("p", **{name: 0})


@pytest.mark.slow
def test_train_policy_improves(made_up_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    suite = load_suite(made_up_suite, "train")
    examples = load_examples(suite)
    told: list[str] = []
    settings = PolicySettings(str(tmp_path / "p"), str(made_up_suite), steps=100, members=1, relatives=0)

    def mean_gain(policy: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(np.mean([(one.wanted * policy(one.given)).sum(dim=1).mean() for one in examples]))

    start = mean_gain(PolicyNetwork())
    policy = train_policy(settings, told.append)
    assert mean_gain(policy) > start + 0.1
    assert mean_scaled(policy, suite) > 0.9
    assert "valid" in told[-1]
    words = ["with", f"out={tmp_path / 'p.safetensors'}", f"suite={made_up_suite}", "steps=2"]
    assert PROGRAM.run(["policy", *words, "members=2", 'budgets=["macs", "latency"]']) == 0
    assert "policy:" in capsys.readouterr().out
    first, second = PolicyEnsemble.load(tmp_path / "p.safetensors").members
    assert not torch.equal(first.mix.weight, second.mix.weight)
