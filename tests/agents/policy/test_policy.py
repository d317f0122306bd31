from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.agents import MaskSpace, make_agent
from das_gym.agents.commands import PROGRAM
from das_gym.agents.policy.choosing import choose, suite_masks
from das_gym.agents.policy.network import NEIGHBOURS, PolicyConfig, UnitNetwork, UnitNetworks, conditional_cost
from das_gym.agents.policy.training import PolicySettings, mean_scaled, train_policy

from das_gym.problem.budget import Budget
from das_gym.problem.statistics import DEFAULT_STATISTICS
from das_gym.tables.suite import MAX_UNITS, Suite, load_suite
from tests.agents.policy.chains import Chains


@pytest.fixture(scope="module")
def suite(made_up_suite: Path) -> Suite:
    return load_suite(made_up_suite, "train", budgets=("count", "macs", "latency"))


@pytest.fixture
def network() -> UnitNetworks:
    torch.manual_seed(0)
    networks = UnitNetworks(UnitNetwork(PolicyConfig(DEFAULT_STATISTICS)) for _ in range(2)).eval()
    for member in networks.members:
        torch.nn.init.normal_(member.score.weight)
    return networks


def observed(suite: Suite, row: int) -> dict[str, np.ndarray]:
    values = suite.problems[row].table.statistics.T.astype(float)
    return dict(zip(suite.problems[row].table.meta.statistics, values, strict=True))


def test_untrained_network_ranks_by_leave_one_out(suite: Suite):
    fresh = UnitNetwork(PolicyConfig(DEFAULT_STATISTICS)).eval()
    which = np.arange(len(suite.problems))
    values = suite.observed[:, :, suite.statistics.index("leave_one_out")]
    np.testing.assert_array_equal(suite_masks(fresh, suite, which), suite.skip_highest(which, -values))


def test_conditional_cost_is_exact_for_runs_of_three():
    """On a loss of chains of up to three units, and two units more that are not there."""
    chains, rng = Chains(), np.random.default_rng(0)
    columns = np.stack([chains.statistics[name] for name in NEIGHBOURS], axis=1)
    there = np.arange(10) < 8
    masks = (rng.random((40, 10)) < 0.4) & there
    statistics = np.broadcast_to(np.pad(columns, ((0, 2), (0, 0))).astype(np.float32), (40, 10, 5))
    given = (statistics, masks.astype(np.float32), np.broadcast_to(there, masks.shape).astype(np.float32))
    found = conditional_cost(*(torch.from_numpy(part.copy()) for part in given)).numpy()
    for mask, row in zip(masks, found, strict=True):
        for unit in np.flatnonzero(~mask & there):
            more = mask.copy()
            more[unit] = True
            assert row[unit] == pytest.approx(chains.loss(more) - chains.loss(mask), abs=1e-5)


def test_untrained_network_ranks_by_conditional_cost(made_up_suite: Path):
    suite = load_suite(made_up_suite, "train", statistics=NEIGHBOURS)
    fresh = UnitNetwork(PolicyConfig(NEIGHBOURS)).eval()
    masks = suite_masks(fresh, suite, np.arange(len(suite.problems)))
    for problem, mask in zip(suite.problems, masks, strict=True):
        n, budget, table = problem.table.n_layers, problem.budget, problem.table
        alone, pairs, runs, _, _ = (table.statistic(name) for name in NEIGHBOURS)  # one stream, in order
        chosen = np.zeros(n, bool)
        while not budget.is_kept_by(chosen[None])[0]:
            costs = np.full(n, np.inf)
            for unit in np.flatnonzero(~chosen & budget.useful_layers):
                more = np.append(chosen, (False, False))
                more[unit] = True
                costs[unit] = alone[more[:n]].sum()
                costs[unit] += pairs[more[:n] & more[1 : n + 1]].sum()
                costs[unit] += runs[more[:n] & more[1 : n + 1] & more[2:]].sum()
            chosen[costs.argmin()] = True
        np.testing.assert_array_equal(mask[:n], chosen)


def test_suite_masks_equal_choose_despite_padding(suite: Suite, network: UnitNetworks):
    masks = suite_masks(network, suite, np.arange(len(suite.problems)), chunk=5)
    for row, problem in enumerate(suite.problems):
        n = problem.table.n_layers
        np.testing.assert_array_equal(choose(network, suite.observed[row, :n], problem.budget)[0], masks[row, :n])
        assert problem.budget.is_kept_by(masks[row : row + 1, :n])[0]


def test_network_is_equivariant_to_the_order_of_units(suite: Suite, network: UnitNetworks):
    statistics = torch.randn(1, 7, len(DEFAULT_STATISTICS))
    order = torch.randperm(7)
    rest = torch.ones(1, 7), torch.zeros(1, 7), torch.tensor([[0.4, 0.0]]), torch.zeros(1)
    with torch.no_grad():
        torch.testing.assert_close(network(statistics[:, order], *rest)[0], network(statistics, *rest)[0][:, order])


def test_ensemble_averages_log_probabilities(suite: Suite, network: UnitNetworks):
    statistics = torch.from_numpy(suite.observed[:1])
    units = torch.from_numpy(suite.units[:1]).float()
    rest = units, torch.zeros_like(units), torch.tensor([[0.4, 0.0]]), torch.zeros(1)
    with torch.no_grad():
        together, whole = network(statistics, *rest)
        apart = [member(statistics, *rest) for member in network.members]
    n = int(units.sum())
    wanted = sum(scores[:, :n].log_softmax(dim=1) for scores, _ in apart) / 2
    torch.testing.assert_close(together[:, :n], wanted)
    torch.testing.assert_close(whole, (apart[0][1] + apart[1][1]) / 2)
    assert not torch.equal(apart[0][0], apart[1][0])


@pytest.mark.parametrize(
    "config",
    [{"width": 10**9, "heads": 1}, {"blocks": 10**9}, {"heads": 5}, {"blocks": 1}, {"width": 16}, {"statistics": []}],
)
def test_load_rejects_tensors_that_do_not_match(network: UnitNetworks, tmp_path: Path, config: dict[str, object]):
    for member in network.members:
        member.config = dataclasses.replace(member.config, **config)
    network.save(tmp_path / "policy.safetensors")
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged.*train one with `python -m agents policy`"):
        UnitNetworks.load(tmp_path / "policy.safetensors")


def test_load_reports_a_missing_policy(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        UnitNetworks.load(tmp_path / "none.safetensors")


def test_load_rejects_another_version(network: UnitNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("das_gym.agents.policy.network.FORMAT", "das_gym policy 1")
        network.save(tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match=r"old\.safetensors is not a policy of this version"):
        UnitNetworks.load(tmp_path / "old.safetensors")


def test_save_and_load_keep_the_policy(network: UnitNetworks, suite: Suite, tmp_path: Path):
    network.save(tmp_path / "policy.safetensors")
    loaded = UnitNetworks.load(tmp_path / "policy.safetensors")
    assert loaded.config == network.config
    which = np.arange(len(suite.problems))
    np.testing.assert_array_equal(suite_masks(loaded, suite, which), suite_masks(network, suite, which))


def test_policy_agents_use_the_policy(network: UnitNetworks, suite: Suite, tmp_path: Path):
    path = str(tmp_path / "policy.safetensors")
    network.save(path)
    for row in (0, len(suite.problems) - 1):
        problem = suite.problems[row]
        space = MaskSpace(problem.budget)
        agent = make_agent("policy", space, 0, {"policy": path}, observed(suite, row))
        assert space.contains(agent.best()[None])[0]
        search = make_agent("policy_bayes", space, 0, {"policy": path}, observed(suite, row))
        first = search.ask(3)
        np.testing.assert_array_equal(first[0], agent.best())
        assert len(np.unique(first, axis=0)) == 3
        search.tell(first, problem.rewards[problem.table.rows(first)])
        assert not (search.ask(1)[:, None] == first).all(axis=2).any()
    with pytest.raises(ValueError, match=r"the policy needs `statistics=.*stream"):
        make_agent("policy", space, 0, {"policy": path}, {"depth": np.zeros(space.n_layers)})
    endless = {**observed(suite, row), "leave_one_out": np.full(space.n_layers, np.inf)}
    with pytest.raises(ValueError, match="the policy reads leave_one_out, which is not finite for every layer"):
        make_agent("policy_bayes", space, 0, {"policy": path}, endless)
    with pytest.raises(FileNotFoundError, match="python -m agents policy"):
        make_agent("policy", space, 0, {"policy": str(tmp_path / "none")}, observed(suite, row))


def test_policy_of_many_units_is_the_untrained_rule(network: UnitNetworks, tmp_path: Path):
    network.save(tmp_path / "policy.safetensors")
    rng = np.random.default_rng(0)
    for n, learned in ((MAX_UNITS, True), (MAX_UNITS + 1, False)):
        statistics = {name: rng.normal(size=n) for name in DEFAULT_STATISTICS}
        space = MaskSpace(Budget(n, 5))
        mask = make_agent("policy", space, 0, {"policy": str(tmp_path / "policy.safetensors")}, statistics).best()
        assert (mask == space.top(-statistics["leave_one_out"])).all() == (not learned)


@pytest.mark.long
def test_train_policy_improves(made_up_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    suite = load_suite(made_up_suite, "train", statistics=NEIGHBOURS)
    start = mean_scaled(UnitNetwork(PolicyConfig(NEIGHBOURS)).eval(), suite)
    told: list[str] = []
    sizes = {"n_envs": 32, "n_steps": 8, "batch_size": 64, "width": 8, "blocks": 1, "learning_rate": 1e-2}
    settings = PolicySettings(str(tmp_path / "p"), str(made_up_suite), steps=4_000, **sizes)
    train_policy(settings, told.append)
    best = max(float(line.split("train ")[1].split(",")[0]) for line in told)
    assert best > start + 0.02
    words = ["with", f"out={tmp_path / 'p.safetensors'}", f"suite={made_up_suite}", "steps=64", "n_envs=4", "n_steps=8"]
    assert PROGRAM.run(["policy", *words, "batch_size=32", "problems=3", "members=2", 'budgets=["macs", "latency"]']) == 0
    assert "policy:" in capsys.readouterr().out
    first, second = UnitNetworks.load(tmp_path / "p.safetensors").members
    assert first.config.statistics == NEIGHBOURS
    assert not torch.equal(first.enter.weight, second.enter.weight)
