import pytest

from benchmarks import leaderboard
from benchmarks.search import problems, runs


@pytest.fixture
def short(monkeypatch) -> None:
    """Few evaluations, and two of the tables."""
    monkeypatch.setattr("benchmarks.search.planted.CLIMBS", 5)
    for n in problems.PLANTED_EVALUATIONS:
        monkeypatch.setitem(problems.PLANTED_EVALUATIONS, n, 24)
    tables = dict(list(problems.find_tables().items())[:2])
    monkeypatch.setattr(problems, "find_tables", lambda: tables)


def test_short_problems_have_many_masks_and_name_their_models():
    found = problems.short_problems(3)
    assert len(found) == 51
    assert min(problem.oracle.space.size for problem in found) >= problems.MIN_MASKS
    assert {problem.model for problem in found} >= {"meter_mini", "vilt_mini", "smolvlm_mini", "test-06-llava-answering"}
    oracle = found[-1].oracle  # one group of examples of the last table
    assert oracle.space.budget.settings == {"skip_num": None, "macs_saved": 0.357}
    assert (oracle.random_reward, oracle.best_reward) == pytest.approx((0.2965620408, 0.6638436335))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_leaderboard_from_one_command(tmp_path, monkeypatch):
    out = tmp_path / "LEADERBOARD.md"
    words = ["--seeds", "1", "--long-seeds", "1", "--planted", "1", "--layers", "24", "36"]
    words += ["--agents", "random", "greedy", "block_influence", "local_search"]
    words += ["--out", str(out), "--cache", str(tmp_path / "kept")]
    leaderboard.main(words)
    text = out.read_text()
    assert "`python -m benchmarks.leaderboard --seeds 1 --long-seeds 1 --planted 1 --layers 24 36`" in text
    for heading in ("## Up to 12 units", "### llava_mini, 24 layers", "### 36 layers, 12 skipped"):
        assert heading in text
    searched, _, recorded = text.partition("## Layers of SmolLM2-135M")
    assert searched.count("\n| random |") == 1 + 2 + 4 + 2  # first table, short ones, long ones, planted ones
    assert searched.count("\n| block_influence |") == 2 + 4  # planted problems have no statistics
    assert recorded.count("\n| random |") == 3  # six and nine layers, and sub-layers
    assert text.index("\n| agent |") < text.index("First are:") < text.index("## How to read")
    monkeypatch.setattr(runs, "run_agent", None)
    monkeypatch.setattr(runs, "run_optuna", None)
    leaderboard.main(words)  # from the cache, milliseconds included
    assert out.read_text() == text


def test_leaderboard_rejects_unknown_agents():
    with pytest.raises(ValueError, match="did you mean 'random'"):
        leaderboard.main(["--agents", "randm"])
