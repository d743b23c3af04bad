"""The table of a finished example."""

import json

from tests.support import run
from tools import generate, summary


def test_it_names_each_answer_and_what_the_trained_one_reached(searched, tmp_path, capsys):
    found, result = tmp_path / "found.json", tmp_path / "result.json"
    run(generate.main, "--run", searched / "logs" / "tiny", "--flops 0.1,0.15 --out", found)
    result.write_text(json.dumps({"target": 0.15, "top1": 12.5, "checkpoint": "last.pth"}))
    capsys.readouterr()
    run(summary.main, f"--cfg {searched / 'tiny.yml'} --architectures {found} --result {result}")
    _, _, *rows, last = capsys.readouterr().out.splitlines()
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [("0.1", "-"), ("0.15", "12.50")]
    for row, answer in zip(rows, json.loads(found.read_text()), strict=True):
        assert float(row.split()[1]) == round(answer["macs_m"], 3)
    assert "last.pth" in last
