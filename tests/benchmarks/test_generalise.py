from __future__ import annotations

import pytest

from benchmarks.generalise import RULES, main


@pytest.mark.slow
def test_generalise_reports_all_methods(capsys: pytest.CaptureFixture[str]):
    main(["--split", "valid", "--budgets", "count"])
    printed = capsys.readouterr().out
    for name in RULES:
        assert f"| {name} | " in printed
