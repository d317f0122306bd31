import json

from benchmarks import regression


def test_compare_names_what_differs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(regression.SECTIONS, "searches", lambda _: {"mask": "0110", "rewards": [0.25, 0.5]})
    path = tmp_path / "record.json"
    words = ["--json", str(path), "--sections", "searches"]
    regression.main(["record", *words])
    assert regression.main(["compare", *words]) == 0
    assert capsys.readouterr().out.endswith("3 values are equal, 0 differ\n")
    record = json.loads(path.read_text())
    record["sections"]["searches"]["rewards"][1] += 0.1
    path.write_text(json.dumps(record))
    assert regression.main(["compare", *words]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith("searches, rewards[1]: expected 0.6, got 0.5")
    assert printed[-1].endswith("1 differ")
