"""The command line: what Hydra's grammar refuses is named, and what the message says to type works."""

import random
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kdnas.app.overrides import checked
from kdnas.base.config import CONF, begun, in_quotes, override
from kdnas.base.errors import ConfigError

VALUES = [
    "/x/epoch=3-step=100.ckpt",
    "~/data",
    "/x/münchen",
    "train[:10%]",
    "/x/a(1)",
    "/x/a,b",
    "/x/#1",
    'say "hi"',
    "it's",
    "C:\\a;b\\",
    "a&b",
    "{a}",
    "[a",
]


def read(word):
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("value", VALUES)
def test_a_word_is_refused_with_a_quoted_form_that_works_in_a_shell(value):
    with pytest.raises(ConfigError) as caught:
        checked([f"data.path={value}"], CONF, sweeps=False)
    said = str(caught.value)
    assert said.startswith(f"data.path={value}: ") and said.isprintable()
    (typed,) = shlex.split(said.partition(": ")[2].rpartition(": ")[2])  # as a shell hands it over
    (word,) = checked([typed], CONF, sweeps=False)
    assert read(word) == value.replace("~", __import__("os").path.expanduser("~"))


@pytest.mark.parametrize("word", ["trainer.max_epochs", "=", "3", "/root", "~", "=3", "dätä=1", "+a b=1"])
def test_what_is_no_setting_is_named(word):
    with pytest.raises(ConfigError, match="must be key=value") as caught:
        checked([word], CONF, sweeps=False)
    assert str(caught.value).startswith(f"{word}: ")


def test_any_text_can_be_quoted():
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice("ab\\\"'$~ ,[]{}()=:#ü%") for _ in range(draw.randint(0, 8)))
        assert read(f"key={in_quotes(text)}") == text
        assert read(override("key", [text, {"a": text, "b": [1, None, True]}])) == [
            text,
            {"a": text, "b": [1, None, True]},
        ]


@pytest.mark.parametrize("text", ["true", "1", "1e3", "nan", "null", "a/b.c", "x y", ""])
def test_text_stays_text(text):
    assert read(override("key", text)) == text


def test_several_values_want_a_multirun():
    words = ["seed=1,2", "task=cola"]
    with pytest.raises(ConfigError, match=r"^seed=1,2: several values need -m"):
        checked(words, CONF, sweeps=False)
    assert checked(["-m", *words], CONF, sweeps=False) == ["-m", *words]


@pytest.mark.parametrize("key", ["paths.output", "paths.export"])
def test_jobs_do_not_share_a_folder(key):
    assert checked([f"{key}=/x"], CONF, sweeps=False)
    for words, sweeps in ((["-m", f"{key}=/x"], False), ([f"{key}=/x"], True)):
        with pytest.raises(ConfigError, match=f"^{key}=/x: all jobs would write there"):
            checked(words, CONF, sweeps)
    assert checked(["-m", f"{key}=null", f"{key}=/x/${{seed}}"], CONF, sweeps=False)


def test_flags_of_hydra_pass():
    words = ["--cfg", "job", "--resolve", "--package", "trainer", "seed=1"]
    assert checked(words, CONF, sweeps=False) == words
    assert checked(["seed=1", "--cfg", "job", "name=x"], CONF, sweeps=False) == ["--cfg", "job", "seed=1", "name=x"]
    with pytest.raises(ConfigError, match="must be --cfg all --resolve"):
        checked(["--cfg", "hydra", "--resolve"], CONF, sweeps=False)


def test_the_tasks_of_a_slurm_step_share_a_folder(monkeypatch):
    assert begun("today") == "today"
    for name, value in (("STEP_NUM_TASKS", "2"), ("JOB_ID", "7"), ("STEP_ID", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert begun("today") == begun("a moment later") == "slurm-7.3"


def test_a_config_can_be_chosen_by_its_dotted_name():
    words = ["student.init=teacher", "data.masking=bert", "student.init.source=/x", "data.masking=null"]
    chosen = ["student/init=teacher", "data/masking=bert", "student.init.source=/x", "data.masking=null"]
    assert checked(words, CONF, sweeps=False) == chosen
    swept = ["-m", "student/init=random,teacher"]
    assert checked(["-m", "student.init=random,teacher"], CONF, sweeps=False) == swept
