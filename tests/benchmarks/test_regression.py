from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import regression


def test_policy_answers_as_recorded(capsys: pytest.CaptureFixture[str]):
    assert regression.main(["compare", "--sections", "policy"]) == 0
    assert capsys.readouterr().out.endswith("values are equal, 0 differ\n")


def test_compare_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "record.json"
    regression.main(["record", "--json", str(path), "--sections", "policy"])
    record = json.loads(path.read_text())
    record["sections"]["policy"]["mean regret"] += 0.1
    path.write_text(json.dumps(record))
    assert regression.main(["compare", "--json", str(path), "--sections", "policy"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("policy, mean regret: expected")
    assert printed[-1].endswith("1 differ")
