from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents.compare.oracle import TableOracle
from das_gym.agents.compare.results import AgentResult, judge

from benchmarks.leaderboard.board import main, verdict


def test_verdict_compares_bayes_with_its_goals(made_up_table):
    oracle = TableOracle("DAS-METER-VQA-Tabular-v0", {"skip_num": 4}, {"table": str(made_up_table)})

    def result(agent: str, halfway: float, ends: list[float], since: int) -> AgentResult:
        curves = np.full((len(ends), 120), oracle.best_reward - halfway)
        curves[:, since:] = oracle.best_reward - np.array(ends)[:, None]
        masks = np.repeat(oracle.space.masks[:1], len(ends), axis=0)
        return judge(oracle, [AgentResult(agent, masks, curves, np.full(len(ends), 120))])[0]

    random, rival = result("random", 0.5, [0.0] * 10, 119), result("other", 0.4, [0.0] * 10, 110)
    good, late = (result("bayes", halfway, [0.0] * 10, 100) for halfway in (0.1, 0.2))
    rare = result("bayes", 0.1, [0.0] * 8 + [0.1] * 2, 100)
    for ours, reached in ((good, "yes"), (late, "no"), (rare, "no")):
        line = verdict({"table": [ours, random, rival]}).splitlines()[-1]
        assert line.split(" | ")[-2:] == [reached, "other: 111 |"]


@pytest.mark.slow
def test_leaderboard_from_one_command(made_up_table, made_up_suite, tmp_path, capsys):
    out = tmp_path / "LEADERBOARD.md"
    words = ["with", f"tables={made_up_table.parent}", f"suite={made_up_suite}", "seeds=1", f"out={out}"]
    words += ["agents=['random','bayes','greedy']", "planted=[24]", f"cache={tmp_path / 'kept'}"]
    main(words)
    text = out.read_text()
    assert "python -m benchmarks.leaderboard with seeds=1" in text
    assert "### DAS-METER-VQA-v0, 8 layers, k = 4 (70 masks)" in text
    assert "### DAS-METER-VQA-v0, 8 layers, at least 12 % of the MACs saved" in text
    assert text.count("\n| bayes |") == text.count("\n| random |") == 6
    many = text.index("### 24 layers, 8 skipped, 120 evaluations, 1 seed")
    assert text.index("## Many layers") < many < text.index("## Goals of our agent")
    assert "without a table: meter_nlvr2," in capsys.readouterr().out
    main(words)  # reads the cache, milliseconds included
    assert out.read_text() == text
    out.write_text(text.replace("is first", "was first"))
    main([*words, "only_planted=True"])
    assert out.read_text() == text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["planted=[]", "only_planted=True"], "only_planted"),
        (["planted=[25]"], "planted"),
        (["tables=none"], "python -m agents table"),
        (["seeds=0"], "seeds"),
        (["agents=['random']"], "bayes"),
    ],
)
def test_leaderboard_rejects_settings(words, text):
    with pytest.raises(ValueError, match=text):
        main(["with", *words])
