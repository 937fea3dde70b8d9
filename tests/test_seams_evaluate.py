"""A table from the outside: a config in a folder of the user's own, chosen by the command's first word."""

import json
import sys

from kdnas.app import command
from kdnas.reports.files import write_files


def best(folder, output, metric):
    """Writes the run with the best metric of all below a folder."""
    results = {path.parent.name: json.loads(path.read_text())[0] for path in folder.glob("*/results.json")}
    name = max(results, key=lambda run: results[run][metric])
    return write_files("output", output, {"best.md": f"{name}: {results[name][metric]}\n"})


CONFIG = """
# @package _global_
folder: ???
evaluation:
  _target_: test_seams_evaluate.best
  folder: {_target_: pathlib.Path, _args_: ["${folder}"]}
  output: {_target_: pathlib.Path, _args_: ["${folder}/report"]}
  metric: accuracy
"""


def test_a_table_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "conf/evaluation").mkdir(parents=True)
    (tmp_path / "conf/evaluation/best.yaml").write_text(CONFIG)
    for name, accuracy in (("one", 0.5), ("two", 0.75)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps([{"accuracy": accuracy}]))
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    words = ["best", "--config-dir", str(tmp_path / "conf"), f"folder={tmp_path}"]
    assert command.evaluate.run(words) == [[tmp_path / "report/best.md"]]
    assert (tmp_path / "report/best.md").read_text() == "two: 0.75\n"
