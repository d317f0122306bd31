"""The order of modules: imports point one way, and names stay in their modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from das_gym.agents.ask_tell.base import AGENTS

ROOT = Path(__file__).parents[1]

LAYERS = ("data", "models", "shapes", "tasks", "engine", "problem", "tables", "drawing", "envs", "agents", "adapt")
"""From the ground up: a package imports itself and those before it; adapt may import agents."""

LEAVES = ("commands", "files", "intervals", "names", "processes", "summaries")
"""The package of commands and the modules at the top that everybody may import; they import each other alone."""

RECORDED = "das_gym.commands.recorded"
"""The module that imports Sacred: commands alone import it."""

REGISTRATION_FROM = "problem"
"""`registration` is for this layer and those above; it imports those below, to check what is registered."""

COMMAND = re.compile(r"(experiment|commands?|__main__)$")
"""Ends of the names of commands: they alone import `RECORDED`."""

FAMILY = re.compile(r"METER|ViLT|(?<![a-zA-Z])(?:meter|vilt)(?![a-z])|\bVLM\b|models\.transformers")
"""In names and in texts of one word; a help text may mention a family."""

FAMILIES_MAY_BE_NAMED = (
    "das_gym.models.meter",
    "das_gym.models.vilt",
    "das_gym.models.transformers",
    "das_gym.registration",
    "das_gym.adapt.paper",
    "das_gym.adapt.shrinking",  # which writes folders of transformers
    "das_gym.adapt.export.answering",  # the same
)

TASK = re.compile(r"das_gym\.tasks\.(?!base|labels|metrics)\w+|^\w+Task$")

EXCEPTIONS = {"family: das_gym.models.checkpoints": "the one list of the families with custom formats"}
"""What does not hold yet, as the tests below say it, and why."""


def modules() -> dict[str, Path]:
    """Every module's file by the name it is imported by; a package's `__init__` by the package's."""
    places = (("das_gym", "das_gym"), ("agents", "das_gym.agents"), ("adapt", "das_gym.adapt"))
    found = {}
    for folder, package in places:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str, types: bool = True) -> set[str]:
    """The modules of das_gym that a module imports anywhere in it; without `types`, not those for type checkers alone."""
    skipped = set()
    if not types:
        guards = [
            n for n in ast.walk(TREES[name]) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")
        ]
        skipped = {id(n) for guard in guards for statement in guard.body for n in ast.walk(statement)}
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found |= {inner if (inner := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {module for module in found if module.split(".")[0] == "das_gym"}


def layer(name: str) -> str:
    """The package or the module at the top that a module lies in; empty for das_gym itself."""
    return name.partition("das_gym")[2].lstrip(".").partition(".")[0]


def allowed(name: str, target: str) -> bool:
    """Whether a module may import another."""
    own, other = layer(name), layer(target)
    if target == RECORDED:
        return own in ("agents", "adapt") and bool(COMMAND.search(name))
    if other in LEAVES or (not other and own not in LAYERS[:-2]):  # das_gym itself: its version, its registrations
        return True
    if own in LEAVES:
        return False
    if own == "registration":
        return other in LAYERS[: LAYERS.index(REGISTRATION_FROM)]
    if other == "registration":
        return own in ("", *LAYERS[LAYERS.index(REGISTRATION_FROM) :])
    return own in LAYERS and other in LAYERS and LAYERS.index(other) <= LAYERS.index(own)


def code_words(name: str) -> Iterator[str]:
    """Every name and every text in a module's code, docstrings left out."""
    docs = {id(n.value) for n in ast.walk(TREES[name]) if isinstance(n, ast.Expr)}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        for field in ("id", "attr", "name", "arg"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def check(wrong: set[str], kind: str) -> None:
    """Fail for what is wrong and not excepted, and for exceptions that nothing needs any more."""
    excepted = {text for text in EXCEPTIONS if text.startswith(kind)}
    wrong = {f"{kind}{text}" for text in wrong}
    assert wrong <= excepted, "\n".join(sorted(wrong - excepted))
    assert excepted <= wrong, "no longer needed:\n" + "\n".join(sorted(excepted - wrong))


def test_imports_point_one_way():
    doors = ("das_gym", "das_gym.agents", "das_gym.adapt")  # which import when asked, and for type checkers
    wrong = {
        f"{name} -> {target}"
        for name in MODULES
        for target in imports(name, types=name not in doors)
        if not allowed(name, target)
    }
    check(wrong, "import: ")


def test_das_gym_knows_neither_agents_nor_adapt():
    lower = [name for name in MODULES if layer(name) not in ("agents", "adapt")]
    assert not [name for name in lower if {layer(target) for target in imports(name)} & {"agents", "adapt"}]


def test_imports_have_no_cycles():
    graph = {name: imports(name, types=False) & MODULES.keys() for name in MODULES}
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"among these there is a circle: {sorted(graph)}"


def test_family_is_named_only_in_its_folder():
    elsewhere = [name for name in MODULES if not name.startswith(FAMILIES_MAY_BE_NAMED)]
    words = {name: [word for word in code_words(name) if " " not in word] for name in elsewhere}
    named = {name for name in elsewhere if any(map(FAMILY.search, words[name]))}
    check(named, "family: ")


def test_task_is_named_only_in_its_folder():
    allowed_too = "das_gym.adapt.paper_command"  # the paper's table is of one task
    outside = [name for name in MODULES if layer(name) not in ("tasks", "registration") and not name.startswith(allowed_too)]
    check({name for name in outside if any(TASK.search(word) for word in code_words(name))}, "task: ")


def test_agent_is_named_only_by_agents_and_commands():
    names = AGENTS.keys() - {"leave_one_out"}  # which is a measure, too
    lower = [name for name in MODULES if layer(name) not in ("agents", "adapt")]
    texts = {name: {n.value for n in ast.walk(TREES[name]) if isinstance(n, ast.Constant)} for name in lower}
    check({name for name in lower if texts[name] & names}, "agent: ")
