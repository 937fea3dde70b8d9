"""The report against numbers worked out by hand."""

from __future__ import annotations

import io
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from optuna.storages import InMemoryStorage
from rich.console import Console

from kdnas import reports
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.reports import Results, plots
from kdnas.reports.notes import NO_CANDIDATE
from kdnas.reports.plots.controller import spearman
from kdnas.reports.plots.drawing import pareto
from kdnas.reports.table import table
from kdnas.reports.text import as_text
from kdnas.search.journal import open_storage
from kdnas.search.observation import Observation
from kdnas.search.ranking import Ranked
from kdnas.search.study import Study

DISTIL = ["python", "train.py", "+experiment=demo"]
TUNE = ["python", "train.py", "+experiment=finetune", "task=rte"]

TEACHER = Cost(100_000_000, 10**9, {"cpu": Latency(40.0, 1.0), "cuda": Latency(6.0, 0.1)})


def architecture(number: int) -> Architecture:
    return Architecture(3 + number, 4, 192, 384, "gelu")


def add(study: Study, number: int, **attributes: Any) -> int:
    study.add(architecture(number), {"episode": 0, "origin": "controller", **attributes})
    return study.trials()[-1].number


def cost(parameters: int, **latency: float) -> Cost:
    return Cost(parameters, 10**6, {device: Latency(median, 0.25) for device, median in latency.items()})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Five candidates, two of them random, one failed; ranks 1 to 4 are trials 3, 1, 2, 0."""
    study = Study(open_storage(tmp_path))
    study.teacher = TEACHER
    rows: list[tuple[float, float, int, float, float, dict[str, Any]]] = [
        # reward, loss, parameters, cpu, cuda, attributes
        (0.50, 0.30, 10_000_000, 8.0, 2.0, {"origin": "random"}),
        (0.90, 0.20, 30_000_000, 16.0, 3.0, {"origin": "random"}),
        (0.80, 0.40, 20_000_000, 10.0, 1.5, {"episode": 1, "prediction": 0.7}),
        (1.00, 0.25, 20_000_000, 5.0, 1.0, {"episode": 1, "prediction": 0.9}),
    ]
    for number, (reward, loss, parameters, cpu, cuda, attributes) in enumerate(rows):
        trial = add(study, number, **attributes)
        study.tell(trial, reward, {"loss": loss}, cost(parameters, cpu=cpu, cuda=cuda))
    study.fail(add(study, 4, episode=1), "out of memory")
    return study


@pytest.fixture
def finalists(tmp_path: Path) -> Study:
    full = Study(open_storage(tmp_path), "full")
    measured = {3: cost(20_000_000, cpu=5.0, cuda=1.0), 0: cost(10_000_000, cpu=8.0, cuda=2.0)}
    for candidate, loss in ((3, 0.11), (0, 0.22)):
        trial = add(full, candidate, candidate=candidate, export=f"runs/{candidate}/export")
        full.tell(trial, 1.0, {"loss": loss}, measured[candidate])
    add(full, 1, candidate=1)  # still running
    return full


def search(size: int, devices: tuple[str, ...] = ("cpu",), predicts: bool = True) -> Study:
    """A search with `size` finished candidates in episodes of 10."""
    study = Study(InMemoryStorage())
    for number in range(size):
        attributes: dict[str, Any] = {"episode": number // 10, "origin": "random" if number < 10 else "controller"}
        if predicts and number >= 10:
            attributes["prediction"] = number / size
        reward = math.sin(number)
        latency = dict.fromkeys(devices, 5 + number % 7)
        study.tell(add(study, number, **attributes), reward, {"loss": 2 - reward}, cost(10**7 + number, **latency))
    return study


def results(seen: list[Observation], top: int = 0, **more: Any) -> Results:
    """The results of a search that found these observations and has distilled none in full."""
    ranked = sorted(seen, key=lambda one: -one.reward)
    return Results(
        "demo", [Ranked(one, rank=rank, mini_rank=rank) for rank, one in enumerate(ranked, start=1)], top, **more
    )


# -- the Pareto front


def test_pareto_front_by_hand() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0), (5.0, 1.0), (0.5, 9.0)]
    assert pareto(points) == [6, 0, 2, 4]


def test_pareto_keeps_equal_points_and_leaves_nan_out() -> None:
    assert pareto([(1.0, 1.0), (math.nan, 0.0), (1.0, 1.0), (0.0, math.nan), (1.0, 2.0)]) == [0, 2]
    assert pareto([]) == []


def test_pareto_agrees_with_the_definition() -> None:
    points = [((7 * k) % 11 / 2, (5 * k * k) % 13 / 2) for k in range(60)]
    beaten = [
        any(a[0] <= b[0] and a[1] <= b[1] and a != b for a in points)  # no worse in both, and not the same
        for b in points
    ]
    assert sorted(pareto(points)) == [index for index, lost in enumerate(beaten) if not lost]


# -- the table


def test_top_rows_and_speed_ups(study: Study) -> None:
    frame = table(Results.of("demo", study, None, 2))
    rows = frame[frame["model"] == "candidate"]
    assert list(rows["trial"]) == [3, 1]
    assert list(rows["rank"]) == [1, 2]
    assert list(rows["architecture"]) == ["[6, 4, 192, 384, gelu]", "[4, 4, 192, 384, gelu]"]
    assert list(rows["parameters (M)"]) == [20, 30]
    assert list(rows["held-out loss"]) == [0.25, 0.20]
    assert list(rows["latency cpu (ms)"]) == [5, 16]
    assert list(rows["spread cuda (ms)"]) == [0.25, 0.25]
    assert list(rows["speed-up cpu"]) == [8, 2.5]
    assert list(rows["speed-up cuda"]) == [6, 2]
    assert list(rows["chosen by"]) == ["controller", "random"]
    assert list(rows["episode"]) == [2, 1]
    assert rows["full held-out loss"].isna().all() and rows["export"].isna().all()


def test_teacher_and_random_rows(study: Study) -> None:
    frame = table(Results.of("demo", study, None, 1)).set_index("model")
    assert list(frame.index) == ["candidate", "teacher", "random, mean of 2", "random, best of 2"]
    teacher, mean, best = frame.iloc[1], frame.iloc[2], frame.iloc[3]
    assert (teacher["parameters (M)"], teacher["speed-up cpu"], teacher["speed-up cuda"]) == (100, 1, 1)
    assert (teacher["latency cpu (ms)"], teacher["spread cpu (ms)"]) == (40, 1)
    assert pd.isna(teacher["reward"]) and pd.isna(teacher["held-out loss"]) and pd.isna(teacher["architecture"])
    assert mean["reward"] == pytest.approx(0.7) and mean["held-out loss"] == pytest.approx(0.25)
    assert (mean["latency cpu (ms)"], mean["speed-up cpu"]) == (12, pytest.approx(40 / 12))
    assert pd.isna(mean["rank"]) and pd.isna(mean["trial"]) and pd.isna(mean["spread cpu (ms)"])
    assert (best["reward"], best["trial"], best["rank"], best["latency cpu (ms)"]) == (0.9, 1, 2, 16)


def test_finalists_are_shown_with_their_results(study: Study, finalists: Study) -> None:
    frame = table(Results.of("demo", study, finalists, 2))
    rows = frame[frame["model"] == "candidate"]
    assert list(rows["trial"]) == [3, 0]  # what was distilled in full comes first: trial 0 was the last by mini-KD
    assert list(rows["mini rank"]) == [1, 4]
    assert list(rows["full held-out loss"]) == [0.11, 0.22]
    assert list(rows["export"]) == ["runs/3/export", "runs/0/export"]


def test_numbers_stay_numbers(study: Study) -> None:
    frame = table(Results.of("demo", study, None, 3))
    texts = {"model", "architecture", "chosen by", "export", "busy cpu", "busy cuda"}
    assert {name for name in frame if not pd.api.types.is_float_dtype(frame[name])} == texts


def test_unknown_is_nan() -> None:
    study = Study(InMemoryStorage())  # no teacher, and a device that only one candidate was measured on
    study.tell(add(study, 0), 1.0, {"loss": 0.5}, cost(10**6, cpu=2.0))
    study.tell(add(study, 1), 0.5, {"loss": 0.5}, cost(10**6, cpu=2.0, mps=1.0))
    frame = table(Results.of("demo", study, None, 5))
    assert list(frame["model"]) == ["candidate", "candidate"]
    assert math.isnan(frame["latency mps (ms)"][0]) and frame["latency mps (ms)"][1] == 1.0
    assert frame["speed-up cpu"].isna().all()


# -- for the eye


def printed(results: Results, **options: Any) -> str:
    return reports.drawn(results, Console(file=io.StringIO(), **options))


def summary(results: Results, folder: Path, written: list[Path] | None = None) -> str:
    commands = reports.commands(results, folder, DISTIL, TUNE)
    return "\n".join([reports.answer(results), commands, reports.files(results, written or [])])


@pytest.mark.parametrize("width", [None, 120, 100, 80, 60])
def test_printed_cells_stay_whole_however_narrow_the_terminal(
    study: Study, finalists: Study, width: int | None
) -> None:
    options = {} if width is None else {"width": width, "force_terminal": True, "no_color": True}
    text = printed(Results.of("demo", study, finalists, 4), **options)
    assert "[6,4,192,384,gelu]" in text and "random, best of 2" in text
    assert " 5.00 ± 0.25" in text and "0.110" in text
    assert "…" not in text
    *rows, explained = text.splitlines()
    assert max(map(len, rows)) <= (width or 120)
    assert "layers" in explained


def test_text_leaves_unknown_empty(study: Study) -> None:
    text = as_text(Results.of("demo", study, None, 1))
    assert list(text["reward"]) == ["1.0000", "", "0.7000", "0.9000"]
    assert list(text["latency cuda (ms)"]) == ["1.00 ± 0.25", "6.00 ± 0.10", "2.50", "3.00 ± 0.25"]
    assert "nan" not in text.to_string().lower()


# -- the files


def check_png(path: Path) -> None:
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 600 and height > 500
    assert matplotlib.image.imread(path)[..., :3].std() > 0.02  # something is drawn


def test_writes_every_file(study: Study, finalists: Study, tmp_path: Path) -> None:
    written = reports.write(tmp_path, Results.of("demo", study, finalists, 2))
    tables, pictures = ["table.csv", "table.md", "candidates.csv"], ["reward.png", "pareto.png", "controller.png"]
    assert [path.name for path in written] == [*tables, *pictures]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(path.name for path in written)
    for path in written[3:]:
        check_png(path)
    again = pd.read_csv(written[0])
    pd.testing.assert_frame_equal(again, table(Results.of("demo", study, finalists, 2)), check_dtype=False)
    assert "[6, 4, 192, 384, gelu]" in written[1].read_text(encoding="utf-8")
    assert written[0].read_text().splitlines()[1].startswith("candidate,1,1,3,")  # whole numbers stay whole


def test_failing_half_way_keeps_the_earlier_report(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = reports.write(tmp_path, Results.of("demo", study, None, 2))
    before = {path: path.read_bytes() for path in written}

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        reports.write(tmp_path, Results.of("other", study, None, 3))
    assert {path: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


@pytest.mark.parametrize("size", [12, 450])
def test_small_and_large_searches(size: int, tmp_path: Path) -> None:
    found = results(search(size).observations, top=2, teacher=TEACHER)
    figures = (
        plots.reward_plot(found),
        plots.pareto_plot(found),
        plots.controller_plot(found),
    )
    for number, figure in enumerate(figures):
        assert figure is not None
        figure.savefig(tmp_path / f"{number}.png")
        check_png(tmp_path / f"{number}.png")


def test_labels_stay_inside_and_apart() -> None:
    figure = plots.pareto_plot(results(search(30).observations, top=5))
    assert figure is not None
    axes = figure.axes[0]
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if text.get_text().startswith("#")]
    boxes = [patch.get_window_extent() for patch in (text.get_bbox_patch() for text in texts) if patch]
    assert [text.get_text().split()[0] for text in texts] == ["#1", "#2", "#3", "#4", "#5"] and len(boxes) == 5
    for index, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:index])
        assert all(axes.get_window_extent().contains(*corner) for corner in box.corners())


def test_one_panel_for_each_device(tmp_path: Path) -> None:
    study = search(12, ("cpu", "cuda", "mps"))
    figure = plots.pareto_plot(results(study.observations, teacher=TEACHER))
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == [f"latency on {d} (ms)" for d in ("cpu", "cuda", "mps")]
    shown = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert shown == [["teacher 40.00 ms →"], ["teacher 6.00 ms"], []]


def test_students_with_an_accuracy_are_compared_by_it() -> None:
    seen = [replace(one, metrics=one.metrics | {"accuracy": 0.5 + one.trial / 100}) for one in search(12).observations]
    figure = plots.pareto_plot(results(seen))
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_ylabel() == "1 − held-out accuracy"
    drawn = np.concatenate([np.asarray(dots.get_offsets())[:, 1] for dots in axes.collections])
    assert set(drawn.round(6)) >= {round(0.5 - one.trial / 100, 6) for one in seen}


def test_spearman_by_hand(study: Study) -> None:
    first, second = pd.Series([1.0, 2.0, 3.0, 4.0]), pd.Series([10.0, 30.0, 20.0, 40.0])
    assert spearman(first, second) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman(first, first**3) == pytest.approx(1)
    assert math.isnan(spearman(first, pd.Series([1.0] * 4)))
    figure = plots.controller_plot(results(study.observations))
    assert figure is not None and "ρ = 1.00" in figure.axes[0].get_title(loc="left")


def test_without_predictions_no_controller_plot(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "controller.png").touch()
    study = search(12, predicts=False)
    written = reports.write(tmp_path, Results.of("demo", study, None, 3))
    assert "controller.png" not in [path.name for path in written]
    assert not (tmp_path / "report" / "controller.png").exists()  # an earlier one does not belong to this report
    assert "no controller.png" in summary(Results.of("demo", study, None, 2), tmp_path, written)


def test_one_candidate(tmp_path: Path) -> None:
    study = search(1)
    written = reports.write(tmp_path, Results.of("demo", study, None, 3))
    for path in written[3:]:
        check_png(path)
    assert "[3,4,192,384,gelu]" in printed(Results.of("demo", study, None, 3))
    assert "Best of 1" in summary(Results.of("demo", study, None, 2), tmp_path, written)


@pytest.mark.parametrize("teacher", [None, TEACHER])
def test_nothing_finished(teacher: Cost | None, tmp_path: Path) -> None:
    study = Study(InMemoryStorage())
    if teacher:
        study.teacher = teacher
    add(study, 0)
    study.fail(add(study, 1), "out of memory")
    written = reports.write(tmp_path, Results.of("demo", study, Study(InMemoryStorage(), "full"), 3))
    assert [path.name for path in written] == ["table.csv", "table.md", "candidates.csv"]
    assert NO_CANDIDATE in written[1].read_text(encoding="utf-8")
    assert ("teacher" in printed(Results.of("demo", study, None, 3))) == (teacher is not None)
    message = summary(Results.of("demo", study, None, 2), tmp_path, written)
    assert NO_CANDIDATE in message and "1 failed; the last reason: out of memory" in message
    assert "train.py" not in message


def test_what_diverged_does_not_flatten_the_rest() -> None:
    seen = search(40).observations
    fastest = cost(10**6, cpu=0.5)  # on the Pareto front, too
    seen += [Observation(40, 4, architecture(40), "random", None, -500.0, {"loss": 1000.0}, fastest)]
    seen += [Observation(41, 4, architecture(41), "random", None, -math.inf, {"loss": math.nan}, seen[0].cost)]
    rewards, losses = plots.reward_plot(results(seen)), plots.pareto_plot(results(seen))
    assert rewards is not None and rewards.axes[0].get_ylim()[0] > -10
    assert losses is not None and losses.axes[0].get_ylim()[1] < 20


# -- the closing message


def test_summary(study: Study, finalists: Study, tmp_path: Path) -> None:
    written = [tmp_path / "report" / "table.csv"]
    lines = summary(Results.of("demo", study, finalists, 2), tmp_path, written).splitlines()
    text = "\n".join(lines)
    assert lines[0] == "Best of 4: [6, 4, 192, 384, gelu] (trial 3, chosen by the controller)"
    assert "5.00 ± 0.25 ms on cpu, 8.0x as fast as the teacher" in text
    assert "2 chosen at random: reward 0.7000 on average, 0.9000 at best" in text
    assert "loss           0.110 (after mini-KD 0.250)" in text and "student        runs/3/export" in text
    assert (
        f"  python train.py +experiment=demo architecture=from_search search.dir={tmp_path} architecture.rank=1"
        in lines
    )
    assert "  python train.py +experiment=finetune task=rte checkpoint=runs/3/export seed=1" in lines
    assert '  model = AutoModel.from_pretrained("runs/3/export")' in lines
    assert f"  {written[0]}" in lines


def test_summary_before_the_finalists(study: Study, tmp_path: Path) -> None:
    text = summary(Results.of("demo", study, None, 2), tmp_path)
    assert "architecture.rank=1" in text and "finetune" not in text and "AutoModel" not in text


@pytest.mark.parametrize(
    "folder", ["out/a search", "out/lr=0.1,seed=2", "it's", "out/é", "out/{x}[1](y)", "plain/a-b.c"]
)
def test_commands_survive_the_shell_and_hydra(study: Study, folder: str) -> None:
    text = summary(Results.of("demo", study, None, 2), Path(folder))
    command = next(line for line in text.splitlines() if "search.dir" in line)
    overrides = OverridesParser.create().parse_overrides(shlex.split(command)[2:])
    assert {override.key_or_group: override.value() for override in overrides}["search.dir"] == folder
