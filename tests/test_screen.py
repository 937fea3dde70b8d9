"""What a user sees while a command runs."""

import io
import logging
import time

import pytest
from rich.console import Console as RichConsole

from kdnas.base import screen
from kdnas.base.screen import activity, aside, board


@pytest.fixture
def shown(monkeypatch):
    """The console handler on a logger of its own, and what it prints."""
    out = io.StringIO()
    monkeypatch.setattr(board, "console", RichConsole(file=out, markup=False, highlight=False, soft_wrap=True))
    handler, logger = screen.Console(), logging.getLogger("kdnas.test")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger, out
    logger.removeHandler(handler)


def test_lines_have_one_prefix_and_stay_in_one_piece(shown):
    logger, out = shown
    logger.info("a" * 300)
    logger.warning("take care")
    first, second = out.getvalue().splitlines()
    assert first[0] == "[" and first.endswith("] " + "a" * 300)
    assert second.endswith("] warning: take care")


def test_what_a_job_of_a_search_says_stays_in_its_own_log(shown):
    logger, out = shown
    with aside():
        logger.info("a detail")
        logger.exception("a traceback")
    with aside(False):
        logger.info("an answer")
    assert out.getvalue().splitlines() == [out.getvalue().strip()] and "an answer" in out.getvalue()


def test_launchers_are_silent_unless_all_is_asked_for(shown, monkeypatch):
    logger, out = shown
    record = logging.LogRecord("hydra._internal.x", logging.INFO, "", 0, "#0 : a command line", None, None)
    logger.handlers[0].handle(record)
    assert out.getvalue() == ""
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    logging.getLogger().manager._clear_cache()
    try:
        logger.handlers[0].handle(record)
    finally:
        monkeypatch.undo()
        logging.getLogger().manager._clear_cache()
    assert "a command line" in out.getvalue()


def test_silence_is_broken_by_how_far_the_work_is(shown, monkeypatch, caplog):
    monkeypatch.setattr("kdnas.base.screen.display.SILENCE", ((float("inf"), 0.0),))
    caplog.set_level(logging.INFO)
    with activity("preparing"), activity("training", total=4) as work:
        work.advance(1)
        work.words = "loss 0.5"
        end = time.monotonic() + 20
        while not any("preparing: training, 25 %, loss 0.5" in line for line in caplog.messages):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not board.activities


def test_what_is_left_is_worked_out_from_this_run_alone():
    with activity("training", total=10) as work:
        assert work.left is None and "left" not in work.state
        work.begin_at(5)
        work.start -= 10
        work.advance(2.5)
        assert work.share == 0.75 and work.left == pytest.approx(10, rel=0.01)
        assert work.state == "75 %, 10 s left"


def test_an_activity_ends_with_an_error_too():
    with pytest.raises(RuntimeError), activity("failing"):
        raise RuntimeError
    assert not board.activities


def test_nothing_is_live_without_a_terminal_or_in_a_process_of_a_launcher(monkeypatch):
    terminal = RichConsole(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(board, "console", terminal)
    monkeypatch.setattr(board, "foreground", False)
    with activity("working"):
        assert not board.live
    monkeypatch.setattr(board, "foreground", True)
    monkeypatch.setenv("TERM", "xterm")
    with activity("working"):
        assert board.live
        with aside(), activity("inside"):
            assert board.live
    assert not board.live
    with aside(), activity("hidden"):
        assert not board.live and board.hidden
