"""What a wheel brings, used from another folder than the repository's."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_functions import TINY

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "conf", "kdnas", "hydra_plugins")


def run(*words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A virtual environment with a wheel of kdnas, and this one's packages; its `bin` folder."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # building leaves files behind
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation"]
    steps = [[*pip, "wheel", *offline, "--wheel-dir", folder, folder / "source"]]
    steps.append([sys.executable, "-m", "venv", "--without-pip", folder / "venv"])
    for step in steps:
        assert run(*step, folder=folder).returncode == 0
    (wheel,), (packages,) = folder.glob("*.whl"), folder.glob("venv/lib/*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    done = run(*pip, "--python", folder / "venv/bin/python", "install", *offline, wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


def test_a_search_and_what_it_suggests(installed, teacher, tmp_path):
    for name in ("search", "train", "evaluate"):
        done = run(installed / f"kdnas-{name}", "--help", folder=tmp_path)
        assert done.returncode == 0 and "experiment: demo," in done.stdout
    words = [*TINY, f"teacher.path={teacher}", "search.episodes=1", "search.candidates=2", "search.finalists=1"]
    done = run(installed / "kdnas-search", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/search/demo/search.log").is_file()
    assert "kdnas-train +experiment=demo" in done.stdout and "train.py" not in done.stdout
    done = run(installed / "kdnas-evaluate", "glue", "~latency", folder=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: folder=runs/glue: holds no finished run")

    code = "import kdnas, sys; print(kdnas.__file__); found = kdnas.open_search('runs/search/demo'); print(len(found))"
    code += "; print(kdnas.distil(*sys.argv[1:])); print(len(kdnas.run_search(*sys.argv[1:], 'search.episodes=1',"
    code += " 'search.candidates=2', 'search.finalists=1')))"
    done = run(installed / "python", "-c", code, *TINY, f"teacher.path={teacher}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(str(installed.parent)) and lines[1] == "2" and lines[-1] == "2"
    assert any(line.startswith("{'loss': ") for line in lines)
