"""Pages generated when the site is built: one for each environment, and copies of files outside docs/.

`mkdocs.yml` names this file as a hook. Environments are described by their docstrings, in Gymnasium's headings, and by the
bundled table, which knows layers and statistics without a model.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium
from figures import search_figure
from mkdocs.structure.files import File, Files

from das_gym import ENVIRONMENTS
from das_gym.registration import (
    MODELS,
    REWARD_THRESHOLDS,
    TASKS,
    EnvEntry,
    env_entry,
    find_class,
)

ROOT = Path(__file__).parents[1]
COPIES = {
    "leaderboard.md": ("LEADERBOARD.md", "Search"),
    "assets-provenance.md": ("das_gym/assets/README.md", "Internals"),
    "contributing.md": ("CONTRIBUTING.md", "Extend"),
    "security.md": ("SECURITY.md", "Extend"),
    "changelog.md": ("CHANGELOG.md", "Extend"),
}
"""Pages copied from files outside docs/, with their section of the navigation."""

SOURCES = {f"../{source}": page for page, (source, _) in COPIES.items()} | {
    "../das_gym/envs/skip_env.py": "environments/index.md",
    "../das_gym/envs/per_input.py": "environments/per_input.md",
}
"""Link targets in docs/ that work on GitHub, and the page of the site for each."""


def on_config(config: Any) -> Any:
    """Put generated pages into the navigation."""
    sections = {title: pages for entry in config.nav if isinstance(entry, dict) for title, pages in entry.items()}
    sections["Environments"] += ["environments/index.md", *(f"environments/{e.id}.md" for e in ENVIRONMENTS.values())]
    sections["Environments"] += ["environments/tabular.md", "environments/per_input.md"]
    for page, (_, title) in COPIES.items():
        sections[title].append(page)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and their figures."""
    for name, (source, _) in COPIES.items():
        files.append(File.generated(config, name, content=_without_outside_links((ROOT / source).read_text("utf-8"))))
    files.append(File.generated(config, "environments/index.md", content=overview()))
    files.append(File.generated(config, "environments/tabular.md", content=tabular_page()))
    per_input = ["# Environments of single examples", "", _docstring(find_class("das_gym.envs.per_input:PerInputEnv"))]
    files.append(File.generated(config, "environments/per_input.md", content="\n".join(per_input)))
    for entry in ENVIRONMENTS.values():
        files.append(File.generated(config, f"environments/{entry.id}.md", content=environment_page(entry)))
        if entry.table is not None:
            files.append(File.generated(config, f"environments/{entry.id}.png", content=search_figure(entry.id)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the pages of the site instead of the files that they are made of."""
    for source, page in SOURCES.items():
        markdown = markdown.replace(f"]({source}", f"]({page}")
    return markdown


def _without_outside_links(text: str) -> str:
    """Links as the top of the repository has them, as they are from within docs/."""
    for name, (source, _) in COPIES.items():
        text = text.replace(f"]({source})", f"]({name})")
    return re.sub(r"\]\(docs/", "](", text)


def overview() -> str:
    """All environments in a table."""
    lines = ["# Environments", "", "| id | model | task | data | from a table |", "|---|---|---|---|---|"]
    for e in ENVIRONMENTS.values():
        tables = [f"[{id}](tabular.md)" for id in REWARD_THRESHOLDS if env_entry(id) is e]
        table = ", ".join(tables) or "no table is bundled"
        lines.append(f"| [{e.id}]({e.id}.md) | {e.model} | {e.task} | {e.data} | {table} |")
    lines += ["", "Custom models and tasks get ids, too: [Extend das_gym](../extending.md)."]
    return "\n".join(lines)


def environment_page(entry: EnvEntry) -> str:
    """Describe an environment: its parts, a figure if it has a table, and its docstring."""
    needs_data = TASKS[entry.task].needs_data
    needed = "" if entry.is_bundled else ", data_root=..." if needs_data else ", supernet=..."
    facts = {
        "made by": f'`gymnasium.make("{entry.id}"{needed})`, many at once by `gymnasium.make_vec` with `num_envs=...`',
        "model": f"`{entry.model}` ({find_class(MODELS[entry.model].vlp).__doc__.splitlines()[0].rstrip('.')})",
        "task": f"`{entry.task}`: {entry.data}",
        "named config": f"`python -m agents with {entry.short}`",
    }
    if needs_data:
        facts["data"] = "none are bundled, see [data](../data.md)"
        lines = []
    elif entry.table is None:
        facts["supernet"] = f"none is bundled: `python -m adapt supernet with {entry.short}` trains one"
        lines = []
    else:
        facts |= _table_facts(entry)
        alt = "The units of each stage, as wide as their share of the MACs, four of them crossed out."
        found = '*What a search by* `bayes` *found on the bundled table, as* `render_mode="rgb_array"` *shows it.*'
        lines = [f"![{alt}]({entry.id}.png)", "", found, ""]
    rows = [f"| {name} | {text} |" for name, text in facts.items()]
    lines = [f"# {entry.id}", "", "| in short | what it is |", "|---|---|", *rows, "", *lines]
    return "\n".join([*lines, _docstring(find_class("das_gym.envs.skip_env:SkipEnv"))])


def _table_facts(entry: EnvEntry) -> dict[str, str]:
    """Return facts about an environment from its bundled table."""
    env: Any = gymnasium.make(entry.tabular_id).unwrapped
    meta = env.table.meta
    statistics = [name.partition("/")[2] for name in env.feature_names if name.startswith(f"{meta.layer_names[0]}/")]
    return {
        "action space": f"`{env.action_space}`; other forms by `action=`",
        "observation space": f"`Box({env.observation_space.shape}, float32)`: {env.n_layers} layers x {len(statistics)} "
        f"statistics ({', '.join(statistics)})",
        "layers, in mask order": ", ".join(f"`{name}`" for name in meta.layer_names),
        "MACs of one example": f"{env.macs_full:,} of the bundled model, without adapters",
        "from a table": f"[`{entry.tabular_id}`](tabular.md): {len(env.table.macs):,} masks, scored on "
        f"{meta.reward_examples:,} examples (and {meta.test_examples:,} of the test split)",
    }


def tabular_page() -> str:
    """All environments that answer from a bundled table."""
    lines = ["# Tabular environments", "", "| id | masks | layers | reward of the best mask |", "|---|---:|---:|---:|"]
    for id, best in REWARD_THRESHOLDS.items():
        table = gymnasium.make(id).get_wrapper_attr("table")
        lines.append(f"| `{id}` | {len(table.macs):,} | {table.n_layers} | {best} |")
    return "\n".join([*lines, "", _docstring(find_class("das_gym.envs.tabular_env:TabularEnv"))])


def _docstring(cls: Any) -> str:
    """A docstring in Markdown, headings as they stand there, with its `Args:` as a table under "Arguments"."""
    about, _, rest = inspect.cleandoc(cls.__doc__).partition("\nArgs:\n")
    about = re.sub(r"\n(`action=)", r"\n\n\1", about.partition("\n\n")[2])
    arguments = inspect.cleandoc("\n" + rest.partition("\n\n")[0])
    rows = [re.sub(r"\s+", " ", part) for part in re.split(r"\n(?=\S)", arguments) if part.strip()]
    named = (row.partition(": ") for row in rows)
    table = ["| argument | meaning |", "|---|---|"]
    table += [f"| {', '.join(f'`{name.strip()}`' for name in names.split(','))} | {told} |" for names, _, told in named]
    about = re.sub(r"## Arguments\n.*?(?=## )", "", about, flags=re.DOTALL)
    at = min(about.index(heading) for heading in ("## Vectorized environment", "## Version History") if heading in about)
    return about[:at] + "\n".join(["## Arguments", "", *table, "", ""]) + about[at:]
