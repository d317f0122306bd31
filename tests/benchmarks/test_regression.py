import json

from benchmarks import regression


def test_compare_names_what_differs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(regression, "searches", lambda *_: {"masks": "0110", "rewards": [0.25, 0.5]})
    path = tmp_path / "record.json"
    words = ["--sections", "searches"]
    regression.main(["record", *words], path)
    assert regression.main(["compare", *words], path) == 0
    record = json.loads(path.read_text())
    record["sections"]["searches"] = {"masks": "0111", "rewards": [0.25, 0.5 + 2e-6], "losses": [1.0]}
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert regression.main(["compare", *words], path) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["searches, masks", "searches, rewards", "searches, losses"]
    assert last == "3 values differ"
