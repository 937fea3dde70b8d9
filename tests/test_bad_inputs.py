"""Bad input: exit status 1, one line on stderr that names the key and the value, and nothing written.

`docs/errors.md` is this table for people.
"""

import json
import sys
from pathlib import Path

import forked
import pytest
from hydra.core.global_hydra import GlobalHydra

from kdnas.app import command
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

ROOT = Path(__file__).parent.parent
SMALL = ["data.rows=64", "data.held_out=16", "latency.repeats=1", "latency.runs=1", "latency.accelerators=[cpu]"]
SMALL += ["latency.patience=0"]
STUDENT = ["architecture.num_hidden_layers=2", "architecture.num_attention_heads=2", "architecture.hidden_size=16"]
DEMO = ["+experiment=demo", "student/init=random", "teacher.path={teacher}", "++teacher.prepare=null", *SMALL]
START = {
    "train": [*DEMO, "trainer.max_epochs=1", *STUDENT, "architecture.intermediate_size=32"],
    "search": DEMO,
    "finetune": ["+experiment=finetune", "checkpoint={teacher}", "task=demo", "data.name=null", "data.max_length=32"],
    "text": [
        "+experiment=demo",
        "student/init=random",
        "teacher.path={teacher}",
        "++teacher.prepare=null",
        "data=wikipedia",
        "data.name=null",
    ],
    "taught": ["+experiment=mnli"],
    "found": [*DEMO, "architecture=from_search"],
    "glue": ["glue", "~latency", "folder={tmp}/runs"],
}
"""Words of commands that are right but for what is added to them, by kind."""


def rows(count=8, **other):
    return [{"premise": f"all {i} dogs run", "hypothesis": "no dogs run", "label": i % 3} | other for i in range(count)]


DATA = {
    "good": rows(),
    "text": rows(label="yes"),
    "named": [row | {"label": "abc"[row["label"]]} for row in rows()],
    "seven": rows(label=7),
    "halves": rows(label=0.5),
    "lists": rows(label=[1]),
    "infinite": rows(label=float("inf")),
    "unlabelled": rows(label=-1),
    "nested": rows(premise=["a", "b"]),
    "blank": rows(premise=""),
    "one": rows(1),
    "none": [],
    "latin": b'{"premise": "\xe9t\xe9", "hypothesis": "x", "label": 0}\n'
    + "".join(json.dumps(row) + "\n" for row in rows()).encode(),
    "torn": b'{"premise": "a", "hypothesis": "x", "label": 0}\n{"premise": "b", "hyp',
    "page": b"<html>404</html>\n",
}
"""Data sets, by what is wrong with them; as rows or as a file's bytes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, content in DATA.items():
        (folder / name).mkdir()
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content).encode()
        for split in ("train", "validation"):
            (folder / name / f"{split}.jsonl").write_bytes(content)
    return folder


@pytest.fixture
def refused(tmp_path, teacher, monkeypatch, capsys):
    """Runs a command of a kind with further words, in this process; gives its one line if nothing else came of it."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/config.json").write_text("{}")
    (tmp_path / "thesis/thesis.tex").write_text("dear to someone")
    script = {"search": "search", "glue": "evaluate"}

    def run(kind, *words, but=(), **places):
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        words = [*START[kind], *quiet, f"paths.runs={tmp_path}/runs", *words]
        words = [word.replace("{tmp}", str(tmp_path)).replace("{teacher}", teacher) for word in words]
        words = [word.replace("{data}", str(places.get("data"))) for word in words]
        name = script.get(kind, "train")
        before = files(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        monkeypatch.chdir(ROOT)
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as caught:
            getattr(command, name)()
        told = capsys.readouterr().err.splitlines()
        assert not [line for line in told if not line.startswith("Error executing job")]  # Hydra's, of a search's job
        line = str(caught.value.code)
        assert line.startswith("error: ") and line.isprintable()
        after = files(tmp_path)
        assert after.keys() == before.keys()
        assert all(after[name] == before[name] for name in before if name not in but)
        return line.removeprefix("error: ")

    return run


def files(folder):
    """What there is, with its content; but for locks, which stay, and Hydra's notes of a search's last command."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if "prepare" not in path.parts}


PAIR = "data.columns=[premise,hypothesis] data.validation=validation"
NAME = "names a folder; must be of 1 to 100 printable characters without a slash, and not . or .."
TABLE = [
    # -- names of keys and groups
    ("train", "latency=null", "latency=null: must be one of default; '~latency' leaves it out"),
    ("glue", "latency=null", "latency=null: must be one of default; '~latency' leaves it out"),
    ("train", "data=null", "data=null: must be one of demo, glue, nli, nli_wikipedia, wikipedia"),
    ("search", "teacher=null", "teacher=null: must be one of albert_base, bert_base, demo"),
    ("train", "outputs=dsk", "Could not find 'outputs/dsk'"),
    ("train", "outputs=null", "outputs=null: must be one of disk, memory, online; '~outputs' leaves it out"),
    ("train", "data/masking=true", "data/masking=true: must be one of bert, whole_word"),
    ("train", "+experiment=dmo", "Could not find 'experiment/dmo'"),
    ("train", "data.rowz=3", "data.rowz: not a key; there is _target_, rows, held_out"),
    (
        "train",
        "objective.hidden_states.weights.hidden_states=2",
        "objective.hidden_states.weights.hidden_states: not a key; there is none yet; '+objective.hidden_states.",
    ),
    ("search", "reward.gamma=1", "reward.gamma: not a key; there is _target_, quality, cost, form, alpha, beta"),
    ("train", "+data.nonsense=1", "data: EncodedDataModule.__init__() got an unexpected keyword argument 'nonsense'"),
    ("search", "+controller.nonsense=1", "controller: FeedbackSampler.__init__() got an unexpected keyword"),
    ("train", "objective._target_=no.such", "objective: Error locating target 'no.such'"),
    ("train", "data.rows=[1", "no viable alternative at input '[1'"),
    ("train", "~objective", "~objective: must be one of autodistil, distilbert, hidden_states"),
    ("train", "~reward", "reward=null: must be a config of conf/reward"),
    (
        "train",
        "data=glue",
        "data.task: refers to a value that no chosen group sets (Interpolation key 'task' not found)",
    ),
    ("search", "controller=feedback,random", "controller=feedback,random: search.py takes one value a key"),
    ("train", "checkpoint={teacher}", "checkpoint={teacher}: is for +experiment=finetune; a distillation starts from"),
    ("train", "task=mnli", "task=mnli: not a setting of the chosen configs; data=glue reads a task's rows"),
    ("search", "architecture=small", "architecture=small: a search chooses the architectures itself"),
    ("search", "paths.output=/x", "paths.output=/x: all jobs would write there; must be left out"),
    ("finetune", "architecture.hidden_size=24", "architecture.hidden_size=24: is only for distillations"),
    (
        "train",
        "task=demo objective=xtremedistil ~objective.normalize trainer.max_epochs=null module.learning_rate=1e-3",
        "module.learning_rate=1e-3: each stage has a learning rate of its own, as objective.labels.learning_rate",
    ),
    ("train", "data.path=a=b", "data.path=a=b: not in Hydra's grammar (mismatched input '=' expecting <EOF>); must be"),
    # -- numbers
    ("train", "seed=-1", "seed=-1: must be a whole number from 0"),
    ("train", "seed=abc", "seed=abc: must be a whole number from 0"),
    ("train", "seed=4294967296", "seed=4294967296: must be below 2^32"),
    ("train", "data.rows=2.5", "data.rows=2.5: must be a whole number from 1"),
    ("train", "data.batch_size=inf", "data.batch_size=inf: must be a whole number from 1"),
    ("train", "data.batch_tokens=100", "data.batch_tokens=100: must be at least 128, two of the longest rows"),
    ("train", "data.batch_tokens=many", "data.batch_tokens=many: must be a whole number from 1"),
    ("train", "outputs.limit=0", "outputs.limit=0: must be above 0, in GB"),
    ("search", "outputs=memory outputs.otherwise.limit=nan", "outputs.otherwise.limit=nan: must be above 0, in GB"),
    ("train", "data.max_length=2", "data.max_length=2: must be a whole number from 8"),
    ("train", "data.max_length=4096", "data.max_length=4096: must be at most the teacher's 128"),
    ("search", "data.proxy=nan", "data.proxy=nan: must be above 0 and at most 1"),
    ("train", "module.learning_rate=nan", "module.learning_rate=nan: must be a number from 0"),
    ("train", "module.learning_rate=fast", "module.learning_rate=fast: must be a number from 0"),
    ("train", "module.betas=[0.9]", "module.betas=[0.9]: must be two numbers from 0 to below 1"),
    ("train", "module.dropout=1.5", "module.dropout=1.5: must be from 0 to below 1, or null"),
    ("train", "trainer.max_epochs=nan", "trainer.max_epochs=nan: must be a whole number from -1"),
    ("train", "trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: must be null or from 0"),
    ("train", "trainer.accelerator=quantum", "trainer: You selected an invalid accelerator name"),
    ("train", "trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input"),
    ("train", "latency.threads=1000000000", "latency.threads=1000000000: must be at most 1024"),
    ("train", "latency.length=4096", "latency.length=4096: must be at most 128"),
    ("train", "latency.dtype=int64", "latency.dtype=int64: must be a torch dtype, as float32"),
    ("train", "latency.accelerators=[tpu]", "latency.accelerators=tpu: not on this machine; it has cpu"),
    ("search", "reward.alpha=0.06", "reward.alpha=0.06: must be at most 0"),
    ("search", "search.episodes=true", "search.episodes=true: must be a whole number from 1"),
    ("search", "search.finalists=null", "search.finalists=null: must be a whole number from 0"),
    ("search", "search.fresh=maybe", "search.fresh=maybe: must be true or false"),
    ("search", "profile=maybe", "profile=maybe: must be true or false"),
    ("train", "module.compile=1", "module.compile=1: must be true or false"),
    # -- architectures and spaces
    ("train", "architecture.num_hidden_layers=9", "architecture.num_hidden_layers=9: must be at most 4"),
    ("train", "architecture.num_attention_heads=3", "architecture.num_attention_heads=3: must divide"),
    ("train", "architecture.hidden_act=gellu", "architecture.hidden_act=gellu: must be one of gelu, "),
    ("train", "+architecture.heads=4", "architecture.heads=4: not a key; the keys are"),
    ("train", "architectures=[]", "architectures=[]: must name at least one student"),
    ("train", "architectures=[3]", "architectures: 3: must be the values of an architecture"),
    ("search", "space.hidden_size=[]", "space.hidden_size=[]: must be a list of one or more different whole numbers"),
    ("search", "space.num_hidden_layers=[99]", "space: none of its 48 architectures meets the constraints"),
    ("search", "space.hidden_act=[gelu,gellu]", "architecture.hidden_act=gellu: must be one of"),
    ("search", "space=within_teacher space.depths=0", "space.depths=0: must be a whole number from 1"),
    ("train", "student.family=brt", "student.family=brt: must be null or one of albert, bert, "),
    ("train", "student.shared=true", "student.shared=true: a bert has no shared layers; must be null"),
    # -- what does not go together
    ("train", "objective.mapping=every", "objective.mapping=every: must be one of last_1, last, uniform, uniform_last"),
    ("train", "objective=minilmv2", "objective.heads=48: must be one of 1, 2, 4, 8, 16, which divide the student's 16"),
    ("train", "objective=minilmv2 objective.layer=9", "objective.layer=9: must be from 1 to 4, or from -4 to -1"),
    ("train", "objective=minilmv2 +objective.pairs.q-x=1", "objective.pairs.q-x=1: must be the weight of one of q-q, "),
    ("train", "+objective.hidden_states.weights.hidden_states=0", "weights of which at least one is above 0"),
    ("train", "objective.hidden_states=null", "objective: has no stage; must have one or more, by name"),
    (
        "train",
        "objective.hidden_states.terms.hidden_states=null",
        ".hidden_states=null: must be a loss term, with its _target_",
    ),
    (
        "train",
        "objective=distilbert",
        "teacher.path={teacher}: has no head for masked tokens; must be",
    ),
    (
        "search",
        "reward=kdnas_v1",
        "reward.quality.name=null: must be a metric beside the loss; the",
    ),
    ("search", "reward.cost.accelerator=cuda", "reward.cost.accelerator=cuda: not measured"),
    ("search", "+search.stages.mini.data.rowz=1", "search.stages.mini.data.rowz: not a setting of the chosen configs"),
    ("search", "search.stages.mini.trainer=null", "trainer=null: must be a config of conf/trainer"),
    ("search", "search.stages=null", "search.stages: has no `mini`; must have each kind of job of search.schedule"),
    ("search", "+search.stages.mine=3", "search.stages.mine=3: must be a mapping with the _target_ of the function"),
    ("search", "search.schedule=null", "search.schedule=null: must be a Schedule, by its _target_"),
    ("search", "search.ranking=null", "search.ranking=null: must be a Ranking, by its _target_"),
    ("train", "job.fidelity=3", "job.fidelity=3: must be a mapping of settings"),
    ("train", "architectures=3", "architectures=3: must be a list"),
    ("search", "trainer.precision=16-mixed search.gang=2", "trainer.precision=16-mixed: must be bf16-mixed for a gang"),
    # -- names that would lead elsewhere
    ("train", "name=../../x", f"name=../../x: {NAME}"),
    ("train", "name=..", f"name=..: {NAME}"),
    ("search", "name=null", f"name=null: {NAME}"),
    ("search", "name='a\nb'", f"name='a\\nb': {NAME}"),
    ("search", "name='a\0b'", f"name='a\\x00b': {NAME}"),
    ("search", f"name={'x' * 101}", f"name={'x' * 101}: {NAME}"),
    ("taught", "teacher.name=../../x", f"teacher.name=../../x: {NAME}"),
    ("taught", "task=own task.num_labels=2", "data.path=null: must be a folder that holds a dataset, or a hub id"),
    ("taught", "task=own", "task.num_labels: required value is missing"),
    ("taught", "task.name=a/b", f"task.name=a/b: {NAME}"),
    # -- folders and models
    ("train", "teacher.path=null", "teacher.path=null: must be a folder that holds a model, or a hub id"),
    ("train", "teacher.path=/no/such", "teacher.path=/no/such: no model there that can be read"),
    ("train", "teacher.path={tmp}/file", "teacher.path={tmp}/file: no model there that can be read"),
    ("train", "student.init=best", "Could not find 'student/init/best'"),
    (
        "train",
        "student.init=teacher architecture.hidden_size=32",
        "student.init=teacher: a student of hidden size 32 is wider than its teacher's 16",
    ),
    ("train", "student.init=embeddings architecture.hidden_size=32", "student.init=embeddings: a student of hidden"),
    ("search", "student.init=teacher space.hidden_size=[8,32]", "student.init=teacher: a student of hidden size 32"),
    ("train", "student.init=checkpoint", "student.init.source=null: must be a folder that holds a model, or a hub id"),
    ("train", "student/init=checkpoint student.init.source=/no/such", "student.init.source=/no/such: no model there"),
    ("train", "paths.output={tmp}/file", "paths.output={tmp}/file: cannot be written to ({tmp}/file is a file)"),
    ("train", "outputs.folder={tmp}/file", "outputs.folder={tmp}/file: cannot be written to ({tmp}/file is a file)"),
    ("train", "paths.output=null", "paths.output=null: must be a folder to write to"),
    ("train", "paths.runs={tmp}/file", "{tmp}/file/demo"),
    ("train", "paths.export={tmp}/thesis", "paths.export={tmp}/thesis: holds something that is not a model"),
    ("train", "latency.table={tmp}", "latency.table={tmp}: is a folder; must be a file, or not there"),
    ("search", "search.dir={tmp}/file/x", "search.dir={tmp}/file/x: cannot be written to ({tmp}/file is a file)"),
    ("search", "search.dir=''", "search.dir='': must be a folder to write to"),
    ("found", "architecture.rank=1", "search.dir={tmp}/runs/search/demo: holds no search"),
    ("finetune", "checkpoint=null", "checkpoint=null: must be a checkpoint of kdnas, a Hugging Face folder"),
    ("finetune", "checkpoint={tmp}/file", "checkpoint={tmp}/file: not a whole checkpoint"),
    ("glue", "folder={tmp}/no", "folder={tmp}/no: holds no finished run of mnli, qqp"),
    # -- data
    ("finetune", "data.path=/no/such", "data.path=/no/such: no dataset there that can be read"),
    ("finetune", "data.path={tmp}/thesis", "data.path={tmp}/thesis: no dataset there that can be read"),
    ("finetune", "data.path={data}/good data.split=training", "has no split training; it has train, validation"),
    ("finetune", "data.path={data}/good data.label=class", "train has no column class; it has premise, hypothesis"),
    ("finetune", "data.path={data}/good data.columns=[]", "data.columns=[]: must be a list of one text column, or of"),
    ("finetune", "data.path={data}/good data.name=x", "data.path={data}/good, name x: no dataset there"),
    (
        "finetune",
        "data.path={data}/good task.num_labels=2",
        "column label holds int64, as 2; must be whole numbers from",
    ),
    ("finetune", "data.path={data}/good task.num_labels=x", "task.num_labels=x: must be a whole number from 2"),
    ("finetune", "data.path={data}/good data.extra=[3]", "data.extra.0: 3: must have columns and path"),
    ("finetune", "data.path={data}/text", "column label holds the classes yes; must be 3 of them"),
    ("finetune", "data.path={data}/seven", "column label holds int64, as 7; must be whole numbers from 0 to 2"),
    ("finetune", "data.path={data}/halves", "column label holds float64, as 0.5; must be names or whole"),
    ("finetune", "data.path={data}/lists", "column label holds lists or the like, as [1]; must be names"),
    ("finetune", "data.path={data}/infinite task=stsb " + PAIR, "column label holds float64, as inf; must be finite"),
    (
        "finetune",
        "data.path={data}/good task=stsb task.num_labels=3",
        "task.num_labels=3: must be 1; a regression predicts one",
    ),
    (
        "finetune",
        "data.path={data}/good task.num_labels=1",
        "task.num_labels=1: must be a whole number from 2",
    ),
    ("finetune", "data.path={data}/good task.num_labels=0", "task.num_labels=0: must be a whole number from 2"),
    ("finetune", "data.path={data}/good task.num_labels=three", "task.num_labels=three: must be a whole number from 2"),
    (
        "finetune",
        "data.path={data}/good task.num_labels=2",
        "as 2; must be whole numbers from 0 to 1, or task.num_labels=3",
    ),
    (
        "finetune",
        "data.path={data}/good task.num_labels=5",
        "up to 2; must be whole numbers from 0 to 4, or task.num_labels=3",
    ),
    ("finetune", "data.path={data}/good task.metric=f1", "task.metric=f1: must be one of accuracy"),
    ("finetune", "data.path={data}/good task.labels=[a,b]", "task.labels=[a,b]: must be a list of 3 different names"),
    ("finetune", "data.path={data}/good task.labels=abc", "task.labels=abc: must be a list of 3 different names"),
    (
        "finetune",
        "data.path={data}/named task.labels=[a,b,d]",
        "holds the classes a, b, c; must be those of task.labels, a, b, d",
    ),
    (
        "finetune",
        "data.path={data}/named task.num_labels=2",
        "the classes a, b, c; must be 2 of them, or task.num_labels=3",
    ),
    ("finetune", "task=own", "task.num_labels: required value is missing"),
    ("finetune", "data.path={data}/unlabelled", "data.path={data}/unlabelled: leaves no training rows"),
    ("finetune", "data.path={data}/nested", "column premise holds lists or the like; must be string"),
    ("finetune", "data.path={data}/none", "data.path={data}/none: no dataset there that can be read"),
    ("finetune", "data.path={data}/latin", "data.path={data}/latin: holds text that is not UTF-8"),
    ("finetune", "data.path={data}/torn", "(JSON parse error: Missing a closing quotation mark in string. in row 1)"),
    ("finetune", "data.path={data}/page", "(JSON parse error: Invalid value. in row 0)"),
    ("text", "data.path={data}/blank data.columns=[premise]", "leaves no training rows (8 rows read (train of "),
    (
        "text",
        "data.path={data}/nested data.columns=[premise]",
        "column premise holds lists or the like; must be string",
    ),
    ("text", "data.path={data}/one data.columns=[premise]", "leaves one row; must be two to hold one out"),
    (
        "text",
        "data.path={data}/good data.columns=[premise,hypothesis]",
        "data.sentences=true: must be false with two columns",
    ),
]


@pytest.mark.parametrize(("kind", "words", "says"), TABLE, ids=lambda text: ascii(text)[1:60])
def test_bad_input(kind, words, says, refused, data, tmp_path, teacher):
    told = refused(kind, *(words.split() if "'" not in words else [words]), data=data)
    for name, value in {"tmp": tmp_path, "data": data, "teacher": teacher}.items():
        says = says.replace(f"{{{name}}}", str(value))
    assert says in told


def test_a_teacher_is_not_trained_before_the_rest_is_checked(refused):
    words = ["teacher=demo", "teacher.path={tmp}/teachers/demo", "++teacher.prepare={+experiment:demo_teacher}"]
    for bad in ("seed=abc", "module.learning_rate=-1", "module.dropout=2", "trainer.max_epochs=x"):
        assert refused("train", *words, bad).startswith(bad)


def test_an_existing_search_stays_as_it_is(refused, tmp_path):
    folder = tmp_path / "runs/search/demo"
    folder.mkdir(parents=True)
    Study(open_storage(folder))
    (folder / "controller.pt").write_bytes(b"of an earlier day")
    for bad in ("search.candidates=0", "seed=-1", "data.rows=0", "space.hidden_size=[0]"):
        assert refused("search", bad).startswith(bad.partition("=")[0])


def test_an_architecture_from_an_unfinished_search_is_refused(refused, tmp_path):
    (tmp_path / "search").mkdir()
    folder, journal = f"search.dir={tmp_path}/search", ["search/study.journal"]
    study = Study(open_storage(tmp_path / "search"))  # which notes in its journal that it was opened
    assert "this search has not finished" in refused("found", folder, but=journal)
    study.order = []
    assert "architecture.rank=1: must be from 1 to 0" in refused("found", folder, but=journal)


def test_a_hub_id_without_network_is_refused(refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused("train", "teacher.path=a/b").startswith("teacher.path=a/b: no model there that can be read")


def test_stages_with_epochs_want_none_of_the_trainers(refused):
    words = ["task=demo", "objective=xtremedistil", "~objective.normalize"]
    told = refused("search", "trainer.max_epochs=1", *words)
    assert told.startswith("trainer.max_epochs=1: must be null; the stages have epochs of their own")


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("train.py", ["architecture.num_attention_heads=5"], "architecture.num_attention_heads=5: must divide"),
        ("search.py", ["objective.mapping=nearest"], "objective.mapping=nearest: must be one of"),
        ("train.py", ["-m", "data.rows=0,2.5"], "job 0 (data.rows=0): data.rows=0: must be a whole number from 1"),
        ("evaluate.py", ["latency=null"], "latency=null: must be one of default"),
    ],
)
def test_the_command_says_it_in_one_line(script, words, says, tmp_path):
    experiment = [] if script == "evaluate.py" else ["+experiment=demo"]  # with a teacher that would have to be trained
    done = forked.run([script, *words, *experiment, f"paths.runs={tmp_path}/runs"])
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if not line.startswith("Error executing job")]
    assert len(told) == 1 + ("-m" in words)  # a line for each of two jobs
    assert all(line.startswith("error: ") for line in told) and says in told[0]
    assert "Traceback" not in done.stdout
    if "-m" not in words:  # whose jobs have a log each
        assert not files(tmp_path)
