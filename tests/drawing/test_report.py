from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from das_gym.drawing import command
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import (
    MOST_TURNS,
    Answers,
    Asked,
    Comparison,
    CostChart,
    Heat,
    Progress,
    RunReport,
    front_of,
    write_report,
)
from das_gym.files import write_json
from tests.browser import check_accessible, check_fits, needs_browser, open_page

NAMES = ["text.0", "text.1", "image.0", "image.1"]
DOT = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
ASKED = [Asked("<b>is it & red?</b>", "<i>yes</i>", [DOT]), Asked("what?</script>")]


def a_report(name: str = "run 1", n_units: int = 4, **more) -> RunReport:
    names = NAMES if n_units == 4 else [f"decoder.{i}.{k}" for i in range(n_units // 2) for k in ("attention", "mlp")]
    rng = np.random.default_rng(0)
    told = {
        "facts": {"reward": "0.75", "metric, %": "94.4"},
        "progress": Progress([0.1, None, 0.5], [0.1, 0.1, 0.5], [0.6, 0.6, 0.2]),
        "heat": Heat.of(rng.random((8, n_units)).tolist()),
        "cost": CostChart.of([(0.1, 0.3), (0.2, 0.2), (0.1, 0.1)], (0.2, 0.2)),
        "statistics": {"depth": list(range(n_units)), "leave_one_out": rng.random(n_units).tolist()},
        "comparison": Comparison(["before", "after"], [("loss", ["0.1", "0.2"])]),
        "answers": Answers.of(["full", "shrunk"], [["yes", "yes"], ["a", ""]], ASKED.__getitem__),
        "versions": {"python": "3"},
    }
    mask = [int(i == 1) for i in range(n_units)]
    return RunReport(name, f"{name} of tests", {}, Architecture.of(names), mask, ["python -m x 'a<b'"]).__class__(
        name, f"{name} of tests", architecture=Architecture.of(names), mask=mask, commands=["x 'a<b'"], **{**told, **more}
    )


def test_the_front_by_hand():
    points = [(0.1, 0.3), (0.2, 0.2), (0.1, 0.1), (0.3, 0.5), (0.3, 0.6), (0.0, 0.2)]
    assert front_of(points) == [(0.3, 0.5), (0.2, 0.2), (0.1, 0.1)]


def test_a_long_search_is_thinned():
    heat = Heat.of([[turn / 1000] for turn in range(1000)])
    assert len(heat.turns) == len(heat.values) == MOST_TURNS
    assert (heat.turns[0], heat.turns[-1], heat.values[-1]) == (1, 1000, [0.999])
    assert Heat.of([]) is None


def test_a_tables_masks_and_front(small_table):
    chart = CostChart.of([], None, small_table)
    losses, saved = small_table.values("loss", "reward"), small_table.macs_saved
    assert len(chart.others) == 64
    for at, loss in chart.front:
        assert not ((losses < loss - 1e-5) & (saved >= at - 1e-5)).any()


def test_questions_on_which_models_differ_come_first():
    said = [["a", "b" if i == 30 else "a"] for i in range(40)]
    answers = Answers.of(["full", "shrunk"], said, lambda number: Asked(f"q{number}"))
    assert [asked.question for asked, _ in answers.rows[:3]] == ["q30", "q0", "q1"]
    assert answers.rows[0][1] == ["a", "b"]
    assert answers.about == "12 of 40 questions; the models differ on 1, which come first"
    alike = Answers.of(["full", "shrunk"], said[:5], lambda number: Asked(f"q{number}"))
    assert alike.about == "5 of 5 questions; the models agree on all"
    assert Answers.of(["subnet"], [["a"]], lambda number: Asked("q")).about == "1 of 1 question"


@pytest.mark.parametrize(
    "picture", ["https://elsewhere/x.png", "data:text/html;base64,YQ==", 'data:image/png;base64,"', DOT + "\n"]
)
def test_a_picture_is_nothing_but_a_picture(picture: str):
    with pytest.raises(ValueError, match="data: URLs of JPEG or PNG"):
        Asked("q", pictures=[picture])


def test_every_model_answers_every_question():
    with pytest.raises(ValueError, match="there are 2 models, and a question has another number"):
        Answers(["a", "b"], [(Asked("q"), ["yes"])], "one")


def test_texts_are_escaped_and_nothing_is_loaded(tmp_path: Path):
    text = write_report(tmp_path / "page.html", [a_report()]).read_text()
    assert "&lt;b&gt;is it &amp; red?&lt;/b&gt;" in text
    assert "what?&lt;/script&gt;" in text
    assert "&lt;i&gt;yes&lt;/i&gt;" in text
    assert '<img src="data:image/png;base64,' in text
    assert "x &#39;a&lt;b&#39;" in text
    assert "default-src 'none'" in text
    assert "src=" not in text.replace('<img src="data:image/', "").split("<script>")[0]


def test_a_search_is_told_with_what_came_of_it():
    search, own = a_report("run 1"), a_report("run 2", progress=None, heat=None, answers=None)
    told = own.with_search(search)
    assert told.name == "run 2"
    assert told.progress == search.progress
    assert told.facts["search: reward"] == "0.75"
    assert told.commands == [*search.commands, *own.commands]


def test_words_before_with_are_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for run in ("3", "4"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        write_json(tmp_path / "runs" / run / "run.json", {})
    words = [f"runs_dir={tmp_path / 'runs'}"]
    assert command.report(["3", "with", *words], "agents report", lambda f: a_report(f"run {f.name}")) == 0
    assert (tmp_path / "runs/3/report.html").is_file()
    assert command.report(["3", "4", "with", *words], "agents report", lambda f: a_report(f"run {f.name}")) == 0
    assert "report_3_4.html (" in capsys.readouterr().out
    for wrong, says in ((["5", "with", *words], "no run '5'"), ([], "name the runs"), (["nowhere"], "nowhere is no run")):
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            command.report(wrong, "agents report", a_report)


def test_the_command_that_does_it_again(tmp_path: Path):
    write_json(tmp_path / "config.json", {"seed": 3, "agent": "a b", "runs_dir": "/x", "resume": None, "evaluations": 240})
    defaults = {"seed": 0, "agent": "bandit", "evaluations": 240}
    assert command.same_again(tmp_path, "agents", defaults).endswith(" with seed=3 'agent=a b'")
    assert command.same_again(tmp_path, "agents", defaults, agent=None, mask="[1]").endswith(" with seed=3 'mask=[1]'")


@pytest.mark.slow
@needs_browser
def test_in_a_browser(chromium, tmp_path: Path):
    one = write_report(tmp_path / "one.html", [a_report(n_units=24)])
    two = write_report(tmp_path / "two.html", [a_report("run 1"), a_report("run 2")])
    for path, scheme in ((one, "light"), (two, "dark")):
        page = open_page(chromium, path, 360, scheme)
        for summary in page.query_selector_all("main summary"):
            summary.press("Enter")
        assert page.query_selector_all("figure details[open] td")
        check_accessible(page)
        check_fits(page)
    assert len(page.query_selector_all("article")) == 2
    assert page.query_selector_all("#run-1 .unit.skipped >> nth=1")[0].inner_text() == "text.1"
    assert [key.inner_text().strip() for key in page.query_selector_all("[data-chart=all-regret] .legend li")] == [
        "run 1",
        "run 2",
    ]
