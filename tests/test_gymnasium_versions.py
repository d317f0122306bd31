"""`gymnasium>=1.2` is true: nothing subscripts at run time what only later versions let one subscript."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GENERIC_IN_1_2 = {"Env", "Wrapper", "ObservationWrapper", "RewardWrapper", "ActionWrapper", "Space", "VectorEnv"}
"""The classes of Gymnasium 1.2 that take type arguments; `VectorWrapper` does so from 1.4 on."""


class RunAtImport(ast.NodeTransformer):
    """Drops annotations, which are never evaluated under `from __future__ import annotations`."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return node.value and ast.Expr(self.visit(node.value))


def subscripted(source: str) -> set[str]:
    """The names from Gymnasium that a file subscripts when it runs."""
    tree = ast.parse(source)
    imported = {"gymnasium": ""}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gymnasium":
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
    found = set()
    for node in ast.walk(RunAtImport().visit(tree)):
        if isinstance(node, ast.Subscript):
            first, *_, last = words if len(words := ast.unparse(node.value).split(".")) > 1 else words * 2
            if first in imported and last[0].isupper():
                found.add(imported.get(last, last))
    return found


@pytest.mark.slow
def test_classes_are_not_subscripted_where_1_2_raises():
    files = [
        path for folder in ("das_gym", "agents", "adapt", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {str(path.relative_to(ROOT)): subscripted(path.read_text(encoding="utf-8")) for path in files}
    assert found["das_gym/envs/scored_env.py"] == {"Env"}
    assert not {path: names - GENERIC_IN_1_2 for path, names in found.items() if names - GENERIC_IN_1_2}
