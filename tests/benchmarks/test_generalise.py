from __future__ import annotations

import pytest

from benchmarks.generalise import ROUNDS, SUM, main


@pytest.mark.slow
def test_generalise_reports_all_methods(capsys: pytest.CaptureFixture[str]):
    main(["--split", "valid", "--budgets", "count"])
    printed = capsys.readouterr().out
    for name in ("policy", ROUNDS, SUM, "leave_one_out"):
        assert f"| {name} | " in printed
