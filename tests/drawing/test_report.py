import json

import numpy as np
import pytest

from das_gym.commands.settings import build
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import Answers, CostChart, Heat, Progress, Question, RunReport, Table, write_report
from tests.browser import check_accessible, check_fits, needs_browser, open_page

NAMES = ["text.0", "text.1", "image.0", "image.1"]
DOT = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
ASKED = [Question("<b>is it & red?</b>", "<i>yes</i>", [DOT]), Question("what?</script>")]


def a_report(name: str = "run 1", n_units: int = 4, **more) -> RunReport:
    names = NAMES if n_units == 4 else [f"decoder.{i}.{k}" for i in range(n_units // 2) for k in ("attention", "mlp")]
    rng = np.random.default_rng(0)
    told = {
        "facts": {"reward": "0.75", "metric, %": "94.4"},
        "progress": Progress([0.1, None, 0.5], [0.1, 0.1, 0.5]),
        "heat": Heat.from_turns(rng.random((8, n_units)).tolist()),
        "cost": CostChart.from_search([(0.1, 0.3), (0.2, 0.2), (0.1, 0.1)], (0.2, 0.2)),
        "statistics": {"depth": list(range(n_units)), "leave_one_out": rng.random(n_units).tolist()},
        "table": Table(("", "before", "after"), (("loss", "0.1", "0.2"),), "Before and after"),
        "answers": Answers.from_models(["full", "shrunk"], ASKED[::-1], [["yes", "yes"], ["a", ""]]),
        "versions": {"python": "3"},
    }
    mask = [int(i == 1) for i in range(n_units)]
    architecture = Architecture.from_names(names)
    told |= {"name": name, "architecture": architecture, "mask": mask, "commands": ["x 'a<b'"]}
    return RunReport(f"{name} of tests", **{**told, **more})


def test_cost_chart_has_the_front_of_a_search():
    points = [(0.1, 0.3), (0.2, 0.2), (0.1, 0.1), (0.3, 0.5), (0.3, 0.6), (0.0, 0.2)]
    assert CostChart.from_search(points, None).front == [(0.3, 0.5), (0.2, 0.2), (0.1, 0.1)]
    assert CostChart.from_search([], None).front == []


def test_answers_show_differing_answers_first():
    said = [["a", "b" if i == 30 else "a"] for i in range(40)]

    def answers_of(models, said):
        return Answers.from_models(models, [Question(f"q{row}") for row in Answers.rows_to_show(said)], said)

    answers = answers_of(["full", "shrunk"], said)
    assert [question.text for question, _ in answers.rows[:3]] == ["q30", "q0", "q1"]
    assert answers.rows[0][1] == ["a", "b"]
    assert answers.about == "12 of 40 questions; the models differ on 1, which come first"
    assert answers_of(["full", "shrunk"], said[:5]).about == "5 of 5 questions; the models agree on all"
    assert answers_of(["subnet"], [["a"]]).about == "1 of 1 question"
    with pytest.raises(ValueError, match="2 models"):
        Answers(["a", "b"], [(Question("q"), ["yes"])], "one")


def test_write_report_escapes_texts_and_loads_nothing(tmp_path):
    text = write_report(tmp_path / "page.html", [a_report()]).read_text()
    assert "&lt;b&gt;is it &amp; red?&lt;/b&gt;" in text
    assert "what?&lt;/script&gt;" in text
    assert "&lt;i&gt;yes&lt;/i&gt;" in text
    assert '<img src="data:image/png;base64,' in text
    assert "x &#39;a&lt;b&#39;" in text
    assert "default-src 'none'" in text
    assert "src=" not in text.replace('<img src="data:image/', "").split("<script>")[0]


def test_with_search_adds_charts_facts_and_commands():
    search, own = a_report("run 1"), a_report("run 2", progress=None, heat=None, answers=None)
    told = own.with_search(search)
    assert told.name == "run 2"
    assert told.progress == search.progress
    assert told.facts["search: reward"] == "0.75"
    assert told.commands == [*search.commands, *own.commands]


def test_report_can_be_built_from_its_record():
    told = a_report()
    assert build(RunReport, json.loads(json.dumps(told.record()))) == told
    with pytest.raises(ValueError, match="`mask` has 2 entries for 4 units"):
        a_report(mask=[0, 1])


@pytest.mark.slow
def test_instruction_below_every_question_is_shown_once():
    questions = [Question("what color?\nOne word."), Question("how many?\nOne word.")]
    answers = Answers.from_models(["full"], questions, [["red"], ["two"]])
    assert [question.text for question, _ in answers.rows] == ["what color?", "how many?"]
    assert "'One word.'" in answers.about
    questions.append(Question("what?\nA phrase."))
    assert Answers.from_models(["full"], questions, [["red"], ["two"], ["that"]]).rows[0][0] == questions[0]


@needs_browser
def test_narrow_page_shows_wide_tables_and_close_losses(chromium, tmp_path):
    table = Table(("", *("a long heading of a model",) * 4), (("loss", *("5,912,345.6",) * 4),), "Before and after")
    cost = CostChart.from_search([(0.1, 5.91), (0.2, 5.93), (0.3, 5.95)], None)
    page = open_page(chromium, write_report(tmp_path / "report.html", [a_report(table=table, cost=cost)]), 390)
    assert page.locator(".scroll[data-cut]").count() == 2
    assert page.locator(".answers th[scope=row]").first.bounding_box()["width"] >= 200
    dots = page.locator("[data-chart=cost] circle")
    heights = [dots.nth(row).bounding_box()["y"] for row in range(dots.count())]
    assert max(heights) - min(heights) > 100  # of 280 pixels


def test_printed_table_cuts_no_number(capsys):
    cells = ("1.45 (1.29..1.79)", "262 (245..272)", "330 (313..365)", "70.4 (66.9..71.2)")
    table = Table(("", "full model", "control", "shrunk", "recovered"), (("first token, times as fast", *cells),))
    table.print(width=60)
    printed = capsys.readouterr().out
    assert all(word in printed for cell in cells for word in cell.split())


@needs_browser
def test_in_a_browser(chromium, tmp_path):
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
    assert [key.inner_text().strip() for key in page.query_selector_all("[data-chart=all-progress] .legend li")] == [
        "run 1",
        "run 2",
    ]
