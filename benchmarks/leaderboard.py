"""Compare all agents on tables of real models and on planted problems, and write LEADERBOARD.md.

python -m benchmarks.leaderboard                    LEADERBOARD.md as it is in the repository
python -m benchmarks.leaderboard --cache FOLDER     keep finished searches: a stopped command continues when run again
python -m benchmarks.leaderboard --seeds 1 --long-seeds 2 --planted 2 --out mine.md
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from das_gym.agents.ask_tell.base import agent_class, check_agent_name
from das_gym.agents.comparing.comparison import AgentResult, quantile
from das_gym.agents.listing import docstring_summary
from das_gym.agents.sb3.algorithms import find_algorithm, is_algorithm
from das_gym.agents.settings import COMPARED_AGENTS

from benchmarks.harness import make_parser
from benchmarks.search.planted import CLIMBS, FAMILIES
from benchmarks.search.problems import (
    EVALUATIONS,
    LONG_EVALUATIONS,
    LONG_TABLES,
    MIN_MASKS,
    PLANTED_EVALUATIONS,
    PLANTED_SEEDS,
    long_problems,
    planted_problem,
    short_problems,
)
from benchmarks.search.rivals import OPTUNA, RIVALS, has_optuna, register_rivals
from benchmarks.search.runs import MASKS_PER_TURN, SB3_SEEDS, compare
from benchmarks.search.scores import WORST, Scores
from das_gym.commands.runs import library_versions
from das_gym.drawing.report import markdown_table
from das_gym.files import write_text
from das_gym.intervals import mean_interval

COUNTS = (5, 10, 20, EVALUATIONS)
SORTED_BY = 20
SB3 = ("ppo", "maskable_ppo")
"""Algorithms of Stable-Baselines3 that are compared."""

LEFT_OUT = ("block_influence", "uniform")
"""Rules with one mask, which the first table leaves out."""

READERS = ("block_influence",)
"""Agents that read layer statistics, which planted problems lack."""

TEMPLATE = Path(__file__).with_name("leaderboard_template.md")
"""The words around the tables. Deeper masks were measured once: a search takes minutes of processor time."""

RECORDS = Path(__file__).parent / "records"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison, and write the file."""
    register_rivals()
    parser = make_parser("leaderboard", __doc__)
    parser.add_argument("--seeds", type=int, default=20, help="searches of each agent on each problem of up to 12 units")
    parser.add_argument("--long-seeds", type=int, default=60, help="searches of each agent on each table of 24 or 30 units")
    parser.add_argument("--planted", type=int, default=8, help="planted problems of each family and number of layers")
    parser.add_argument("--layers", type=int, nargs="+", default=list(PLANTED_EVALUATIONS), help="sizes of planted problems")
    agents = sorted((*COMPARED_AGENTS, *RIVALS, *SB3))
    parser.add_argument("--agents", nargs="+", default=agents, help='or "module:class" of custom ones')
    parser.add_argument("--out", type=Path, default=Path("LEADERBOARD.md"))
    parser.add_argument("--cache", type=Path, help="folder for finished searches")
    options = parser.parse_args(arguments)
    for agent in options.agents:
        if not is_algorithm(agent):
            check_agent_name(agent)
    short = compare("up to 12 units", short_problems(options.seeds), options.agents, options.cache)
    long = compare("24 and 30 units", long_problems(range(options.long_seeds)), options.agents, options.cache)
    planted = {}
    for n in options.layers:
        agents = [agent for agent in options.agents if not is_algorithm(agent) and agent not in READERS]
        if n == min(PLANTED_EVALUATIONS) and has_optuna():  # with more layers it takes as long as all others together
            agents.append(OPTUNA)
        seeds = PLANTED_SEEDS[: options.planted]
        problems = [planted_problem(family, n, seed) for family in FAMILIES for seed in seeds]
        planted[n] = compare(f"planted, {n}", problems, agents, options.cache)
    write_text(options.out, document(options, short, long, planted))
    print(f"written: {options.out}")


def document(settings: argparse.Namespace, short: Scores, long: Scores, planted: dict[int, Scores]) -> str:
    """Return the whole file."""
    shown = [agent for agent in short.ranked(SORTED_BY) if agent not in LEFT_OUT]
    command = f"python -m benchmarks.leaderboard --seeds {settings.seeds} --long-seeds {settings.long_seeds}"
    return TEMPLATE.read_text(encoding="utf-8").format(
        settings=settings,
        summary=summary(shown, short, long, planted),
        winners=winners(short, long, planted),
        listed=len(shown),
        compared=len(short.results),
        sorted_by=SORTED_BY,
        command=f"{command} --planted {settings.planted} --layers {' '.join(map(str, settings.layers))}",
        versions=library_versions(),
        worst=WORST,
        masks_per_turn=MASKS_PER_TURN,
        sb3_note=sb3_note(settings),
        short_problems=len(short.problems),
        short_models=len(short.models),
        min_masks=MIN_MASKS,
        short_table=short_table(short),
        model_table=model_table(short),
        long_count=len(LONG_TABLES),
        long_evaluations=LONG_EVALUATIONS,
        long_tables=long_tables(long),
        families=len(FAMILIES),
        climbs=CLIMBS,
        planted_tables=planted_tables(planted),
        real_layers=recorded_table(RECORDS / "real_model_report.txt"),
        real_sublayers=recorded_table(RECORDS / "real_model_sublayers.txt"),
        methods="\n".join(f"| `{name}` | {method_of(name)} |" for name in settings.agents),
    )


def recorded_table(record: Path) -> str:
    """Return the lines of the table in a record."""
    return "\n".join(line for line in record.read_text(encoding="utf-8").splitlines() if line.startswith("|"))


def method_of(agent: str) -> str:
    """Return what an agent does, in a line."""
    if is_algorithm(agent):
        return f"Stable-Baselines3's {find_algorithm(agent)[1].path.rpartition(':')[2]}, with das_gym's settings for it."
    return docstring_summary(agent_class(agent))


def summary(agents: Sequence[str], short: Scores, long: Scores, planted: dict[int, Scores]) -> str:
    """Return the first table."""
    head = ["agent", *(f"up to 12 units: at {count}" for count in COUNTS[:3]), f"seeds at {SORTED_BY}"]
    head.append(f"24 and 30 units: optimum in {LONG_EVALUATIONS}")
    head += [f"planted {n}: at {PLANTED_EVALUATIONS[n]}" for n in planted]
    rows = []
    for agent in agents:
        row = [agent, *(short.cell(agent, count) for count in COUNTS[:3]), spread(short, agent)]
        row.append(f"{100 * long.found(agent):.0f} %")
        for n, scores in planted.items():
            row.append(f"{scores.mean(agent, PLANTED_EVALUATIONS[n]):.3f}" if agent in scores.results else "-")
        rows.append(row)
    return "\n".join(markdown_table(head, rows))


def winners(short: Scores, long: Scores, planted: dict[int, Scores]) -> str:
    """Return who is first where, as a list."""
    found = [f"- up to 12 units, after {count} evaluations: {short.winners(count)}" for count in COUNTS[:3]]
    found += [f"- {name}: {optima(long, place)}" for place, name in enumerate(LONG_TABLES)]
    for n, scores in planted.items():
        last = PLANTED_EVALUATIONS[n]
        found.append(f"- planted problems of {n} layers, after {last} evaluations: {scores.winners(last)}")
    return "\n".join(found)


def spread(scores: Scores, agent: str) -> str:
    """Return the standard deviation over seeds of an agent's mean regret."""
    value = scores.seed_spread(agent, SORTED_BY)
    return f"{value:.3f}" if np.isfinite(value) else "-"


def sb3_note(settings: argparse.Namespace) -> str:
    """Return how many searches stand behind the rows of Stable-Baselines3."""
    named = [f"`{agent}`" for agent in settings.agents if is_algorithm(agent)]
    return f"{' and '.join(named)}: {SB3_SEEDS} seeds at most." if named else ""


def optima(long: Scores, place: int) -> str:
    """Return which agents find the optimum of a large table most often."""
    shares = {agent: results[place].found_best[:, -1].mean() for agent, results in long.results.items()}
    most = max(shares.values())
    first = [f"`{agent}`{one_run(long.results[agent][place])}" for agent, share in shares.items() if share == most]
    return f"{', '.join(first)} with {100 * most:.0f} % optima"


def one_run(result: AgentResult) -> str:
    """Return a remark if all seeds gave the same search."""
    return " (one run)" if len(np.unique(result.curves, axis=0)) == 1 else ""


def short_table(scores: Scores) -> str:
    """Return the table of the problems of up to 12 units."""
    head = ["agent", *(f"at {count}" for count in COUNTS), f"seeds at {SORTED_BY}", f"optimum at {EVALUATIONS}", "ms"]
    rows = [
        [
            agent,
            *(scores.cell(agent, count) for count in COUNTS),
            spread(scores, agent),
            f"{100 * scores.found(agent):.0f} %",
            f"{scores.milliseconds(agent):.1f}",
        ]
        for agent in scores.ranked(SORTED_BY)
    ]
    return "\n".join(markdown_table(head, rows))


def model_table(scores: Scores) -> str:
    """Return a table of agents and models."""
    rows = []
    for agent in scores.ranked(SORTED_BY):
        rows.append([agent, *(f"{regret:.3f}" for regret in scores.by_model(agent, SORTED_BY))])
    return "\n".join(markdown_table(["agent", *scores.models], rows))


def long_tables(scores: Scores) -> str:
    """Return a table for each problem of 24 or 30 units, the agent with the most optima first."""
    parts = []
    for place, name in enumerate(LONG_TABLES):
        alone = Scores(scores.problems[place : place + 1], {agent: [each[place]] for agent, each in scores.results.items()})
        counts = (20, 60, LONG_EVALUATIONS)
        rows = []
        for agent in sorted(alone.results, key=lambda agent: (-alone.found(agent), alone.mean(agent, 60), agent)):
            (result,) = alone.results[agent]
            low, high = mean_interval(result.found_best[:, -1].astype(float))
            needed = quantile(result.evaluations_needed(), 50)
            share = f"{100 * alone.found(agent):.0f} %"
            optimum = f"{share}{one_run(result) or f' [{100 * low:.0f}, {100 * high:.0f}]'}"
            rows.append(
                [
                    agent,
                    optimum,
                    f"{needed:.0f}" if np.isfinite(needed) else "-",
                    *(f"{alone.mean(agent, count):.3f}" for count in counts),
                ]
            )
        head = ["agent", "optimum", "needed", *(f"at {count}" for count in counts)]
        masks = alone.problems[0].oracle.space.size
        parts += [f"### {name} ({masks:,} masks)", "", *markdown_table(head, rows), ""]
    return "\n".join(parts).rstrip()


def planted_tables(planted: dict[int, Scores]) -> str:
    """Return a table for each number of layers, the agent with the lowest regret at the end first."""
    parts = []
    for n, scores in planted.items():
        last = PLANTED_EVALUATIONS[n]
        counts = (20, last // 3, last)
        rows = []
        for agent in scores.ranked(last):
            families = scores.by_model(agent, last).reshape(len(FAMILIES), -1).mean(axis=1)
            cells = [*(scores.cell(agent, count) for count in counts), *(f"{regret:.3f}" for regret in families)]
            rows.append([agent, *cells, f"{scores.milliseconds(agent):.1f}"])
        head = ["agent", *(f"at {count}" for count in counts), *FAMILIES, "ms"]
        parts += [f"### {n} layers, {n // 3} skipped", "", *markdown_table(head, rows), ""]
    return "\n".join(parts).rstrip()


if __name__ == "__main__":
    main()
