"""The queue of GPU runs: its page is generated, its rows fit the recipes, its parcels fit the machine's limits."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED, needs_shared, tiny_model
from safetensors.torch import save_file

from air_model.configuration_air import TRAVELLING_FILES
from air_model.scripts.analyze import parse_args as analysis_arguments
from air_model.training.miniature import miniature, miniature_data
from air_model.training.recipe import as_words, read_recipe
from air_model.workshop import run_queue, scaling


def test_the_page_is_what_the_script_writes(tmp_path, monkeypatch):
    committed = (ROOT / "results" / "QUEUE.md").read_text()
    assert run_queue.write_queue().read_text() == committed


@pytest.mark.parametrize("name", run_queue.QUEUE)
def test_every_row_is_a_recipe_with_known_overrides(name):
    item = run_queue.QUEUE[name]
    recipe = read_recipe(item.recipe, ["data=somewhere", *item.overrides])
    assert recipe.train.max_steps > 0 and (item.checkpoint is None or item.evaluations)


def test_the_page_of_arithmetic_is_what_its_script_writes():
    assert (ROOT / "docs" / "scaling.md").read_text() == scaling.page()


def test_every_command_of_the_page_can_be_read_by_the_script_that_it_names():
    commands = re.findall(r"`python (\S+\.py)( ?[^`]*)`", (ROOT / "results" / "QUEUE.md").read_text())
    readers = {"workshop/run_queue.py": run_queue.parse_arguments, "scripts/analyze.py": analysis_arguments}
    assert len(commands) > len(run_queue.QUEUE)
    for script, words in commands:
        assert (ROOT / script).is_file(), script
        if script in readers:
            readers[script](shlex.split(words))


def work_folder(tmp_path, status):
    """What a run leaves: run.json and a checkpoint, or a model."""
    model, run = tiny_model(), tmp_path / "work" / "run"
    checkpoint = run / "checkpoints" / "checkpoint_7"
    checkpoint.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, checkpoint / "model.safetensors")
    save_file({"lm_head.weight": torch.ones_like(state["lm_head.weight"])}, checkpoint / "ema.safetensors")
    (run / "run.json").write_text(json.dumps({"status": status, "model_config": model.config.to_dict()}, default=str))
    return tmp_path / "work"


def test_an_unfinished_run_ships_its_averaged_weights_in_bfloat16(tmp_path):
    run_queue.write_parcel(work_folder(tmp_path, "running"), tmp_path / "parcel")
    from air_model import AirModel

    model = AirModel.from_pretrained(tmp_path / "parcel")
    assert model.dtype == torch.bfloat16 and (model.lm_head.weight == 1).all()
    assert len(list((tmp_path / "parcel").iterdir())) <= 8


def test_only_finished_runs_are_collected(tmp_path, capsys):
    run_queue.write_parcel(work_folder(tmp_path, "stopped"), tmp_path / "parcel")
    assert run_queue.main(["sudoku-published", "--collect", str(tmp_path / "parcel")]) == 1
    assert "--go-on" in capsys.readouterr().err
    assert run_queue.main(["sudoku-published", "--collect", str(tmp_path / "nowhere")]) == 1
    assert "holds no run.json" in capsys.readouterr().err


COMMANDS = """
import json, sys
if sys.argv[1] == "installed":
    import air_model
else:
    sys.modules["air_model"] = None
from transformers import AutoModel, AutoProcessor, pipeline

trust = {} if sys.argv[1] == "installed" else {"trust_remote_code": True}
model = AutoModel.from_pretrained("checkpoints/air-sudoku-6x6", **trust)
processor = AutoProcessor.from_pretrained("checkpoints/air-sudoku-6x6", **trust)
pipe = pipeline("puzzle-solving", model="checkpoints/air-sudoku-6x6", **trust)
again = pipeline("puzzle-solving", model=model)
model.save_pretrained(sys.argv[2])
found = [one("1" + "." * 35, max_act_steps=1) for one in (pipe, again)]
print(json.dumps([type(model).__module__, processor.task, found[0] == found[1]]))
"""


@pytest.mark.parametrize("how", ["installed", "bare checkout"])
def test_a_shipped_checkpoint_loads_in_the_root_of_a_checkout_and_saves_its_code(how, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": ""}
    if how == "installed":
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "air_model").symlink_to(ROOT)
        environment["PYTHONPATH"] = str(tmp_path / "path")
    command = [sys.executable, "-c", COMMANDS, how, str(tmp_path / "saved")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    module, task, same = json.loads(done.stdout.splitlines()[-1])
    assert (module == "air_model.modeling_air") == (how == "installed") and task == "sudoku" and same
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert files == {"config.json", "model.safetensors", "processor_config.json", *TRAVELLING_FILES}
    assert ".--" not in (tmp_path / "saved" / "config.json").read_text()


def test_the_lines_of_a_shipped_card_load_it_from_the_root_of_a_checkout():
    for card in (ROOT / "checkpoints").glob("*/README.md"):
        named = re.findall(r'(?:from_pretrained\(|model=)"(.+?)"', card.read_text())
        assert named == [f"checkpoints/{card.parent.name}"] * 3


def test_shipped_checkpoints_hold_no_code():
    assert not list((ROOT / "checkpoints").rglob("*.py"))


def test_shipped_checkpoints_fit_the_repository():
    files = [path for path in (ROOT / "checkpoints").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 50e6
    assert all(path.stat().st_size < 16e6 for path in files if path.suffix == ".safetensors")


@pytest.fixture
def tiny_row(tmp_path, monkeypatch):
    """A repository of its own with one row, and a finished parcel of it: (root, parcel)."""
    model = tiny_model()
    size = {"hidden_size": model.config.hidden_size, "num_hidden_layers": model.config.num_hidden_layers}
    overrides = ("max_steps=5", "batch_size=4", *(f"{key}={value}" for key, value in size.items()))
    item = run_queue.Item(
        "a test",
        "sudoku_extreme",
        "x",
        1,
        overrides,
        "air-tiny",
        {"max-16": ("--halt", "max")},
        curve=("--attempts", "2"),
    )
    root = tmp_path / "root"
    (root / "results").mkdir(parents=True)
    monkeypatch.setattr(run_queue, "ROOT", root)
    monkeypatch.setattr(run_queue, "QUEUE", {"tiny": item})
    parcel = tmp_path / "parcel"
    model.save_pretrained(parcel)
    recipe = read_recipe("sudoku_extreme", ["data=x", *overrides])
    run = {"status": "finished", "task": "sudoku", "variant": "Lx_H", "seed": 0, "steps": 5, "max_steps": 5}
    run |= {"name": "tiny", "date": "2026-11-25"}
    (parcel / "run.json").write_text(json.dumps({**run, "config": recipe.flat()}))
    measured = {"n": 2, "exact_accuracy": 0.5, "date": "2026-11-25", "settings": {"limit": None, "halt": "max"}}
    (parcel / "evaluations.json").write_text(json.dumps({"max-16": measured, "curve": {"curves": {}}}))
    (parcel / "thought.png").write_bytes(b"png")
    return root, parcel


def kept(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_parcel_is_collected_with_its_curve_and_only_once(tiny_row):
    root, parcel = tiny_row
    for _ in range(2):
        assert run_queue.main(["tiny", "--collect", str(parcel)]) == 0
        assert len((root / "results" / "runs.jsonl").read_text().splitlines()) == 1
    assert {"results/queue/tiny.json", "results/queue/tiny-curve.json", "results/queue/tiny-curve.png"} <= set(
        kept(root)
    )
    assert (root / "checkpoints" / "air-tiny" / "model.safetensors").is_file()
    assert "done: 50.0% exact of 2" in (root / "results" / "QUEUE.md").read_text()


def damage(parcel, how):
    if how == "truncated weights":
        (parcel / "model.safetensors").write_bytes((parcel / "model.safetensors").read_bytes()[:-100])
    elif how == "no evaluations":
        (parcel / "evaluations.json").unlink()
    elif how == "broken evaluations":
        (parcel / "evaluations.json").write_text('{"max-16": {')
    elif how == "empty evaluations":
        (parcel / "evaluations.json").write_text("{}")
    else:
        record = json.loads((parcel / "run.json").read_text())
        evaluations = json.loads((parcel / "evaluations.json").read_text())
        if how == "a rehearsal":
            evaluations["max-16"]["settings"]["limit"] = 2
        elif how == "another seed":
            record["config"]["seed"] = 3
        else:
            record["config"]["variant"] = "HRM"
        (parcel / "run.json").write_text(json.dumps(record))
        (parcel / "evaluations.json").write_text(json.dumps(evaluations))


@pytest.mark.parametrize(
    "how, says",
    [
        ("truncated weights", "safetensors"),
        ("no evaluations", "holds no evaluations.json"),
        ("broken evaluations", "no readable JSON"),
        ("empty evaluations", "has no 'max-16'"),
        ("a rehearsal", "not of all dev rows"),
        ("another seed", "seed=3 instead of 0"),
        ("another variant", "variant='HRM' instead of 'Lx_H'"),
    ],
)
def test_a_parcel_that_is_not_whole_or_not_of_the_row_leaves_nothing_behind(tiny_row, capsys, how, says):
    root, parcel = tiny_row
    damage(parcel, how)
    assert run_queue.main(["tiny", "--collect", str(parcel)]) == 1
    assert says in capsys.readouterr().err
    assert kept(root) == []


def test_a_call_for_another_run_in_the_same_folder_is_refused(tiny_row, tmp_path, capsys):
    work = tmp_path / "w" / "tiny" / "run"
    work.mkdir(parents=True)
    shutil.copyfile(tiny_row[1] / "run.json", work / "run.json")
    assert run_queue.main(["tiny", "seed=7", "--work-dir", str(tmp_path / "w")]) == 1
    assert "seed=0 instead of 7" in (said := capsys.readouterr().err) and "another --work-dir" in said


def test_a_zombie_is_no_running_training(tmp_path):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    (tmp_path / "pid").write_text(str(pid))
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        pass
    try:
        assert not run_queue.alive(tmp_path / "pid")
    finally:
        os.waitpid(pid, 0)


def test_a_mistyped_row_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        run_queue.main(["sudoku-publshed"])
    assert "Did you mean 'sudoku-published'?" in capsys.readouterr().err


def test_the_record_of_an_unfinished_parcel_says_how_far_its_weights_have_come(tmp_path):
    run_queue.write_parcel(work_folder(tmp_path, "running"), tmp_path / "parcel")
    assert json.loads((tmp_path / "parcel" / "run.json").read_text())["steps"] == 7


# ---- the rehearsal: whole rows in miniature, as processes of their own


@needs_shared
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name", ["sudoku-published", "sudoku-best", "sudoku-lattices", "maze", "maze-small", "gap-HRM-0"]
)
def test_a_row_in_miniature_is_trained_on_the_real_rows_and_evaluated(name, tmp_path, capsys):
    folders = ["--work-dir", str(tmp_path / "work"), "--output-dir", str(tmp_path / "parcels")]
    assert run_queue.main([name, "--rehearse", "--data-root", str(SHARED / "data"), "--minutes", "9", *folders]) == 0
    assert f"{name}: done" in capsys.readouterr().out
    evaluations = json.loads((tmp_path / "parcels" / f"{name}-rehearsal" / "evaluations.json").read_text())
    assert evaluations.keys() >= run_queue.QUEUE[name].evaluations.keys()
    assert run_queue.main([name, "--collect", str(tmp_path / "parcels" / f"{name}-rehearsal")]) == 1  # no rehearsals


@pytest.fixture
def miniature_row(tmp_path, monkeypatch):
    """A repository of its own with one small row; returns a function that runs its command with further words."""
    root = tmp_path / "root"
    for name in ("train_accelerate.py", "scripts"):
        root.mkdir(exist_ok=True)
        (root / name).symlink_to(ROOT / name)
    (root / "results").mkdir()
    data = miniature_data("sudoku", tmp_path / "data" / "tiny")
    shutil.copyfile(data / "test.csv", data / "dev.csv")
    small = {**miniature(read_recipe("sudoku_best").model, steps=100), "save_every": 20, "eval_every": 0}
    item = run_queue.Item(
        "a rehearsal", "sudoku_best", "tiny", 1, tuple(as_words(small)), "air-tiny", {"max-16": ("--halt", "max")},
        curve=("--attempts", "2", "--max-act-steps", "8"),
    )  # fmt: skip
    monkeypatch.setattr(run_queue, "ROOT", root)
    monkeypatch.setattr(run_queue, "QUEUE", {"tiny": item})
    folders = ["--data-root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "parcels")]

    def run(machine: str, minutes: float, *words: str) -> int:
        return run_queue.main(
            ["tiny", *folders, "--work-dir", str(tmp_path / machine), f"--minutes={minutes}", *words]
        )

    return run


def kill_after_checkpoint(work: Path, step: int) -> None:
    """SIGKILL to the training of a work folder once it has saved that step."""
    end = time.monotonic() + 200
    while not list((work / "run" / "checkpoints").glob(f"checkpoint_{step}")):
        assert time.monotonic() < end and run_queue.alive(work / "pid"), (work / "train.log").read_text()
        time.sleep(0.02)
    os.kill(int((work / "pid").read_text()), signal.SIGKILL)
    os.waitpid(int((work / "pid").read_text()), 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_row_that_is_killed_twice_goes_on_here_and_on_another_machine_and_is_collected(
    miniature_row, tmp_path, capsys
):
    assert miniature_row("first", 0) == 0  # starts it, and has no time to wait
    kill_after_checkpoint(tmp_path / "first" / "tiny", 20)
    assert miniature_row("first", 0) == 0
    kill_after_checkpoint(tmp_path / "first" / "tiny", 40)
    assert "Resumed from" in (tmp_path / "first" / "tiny" / "train.log").read_text()
    run_queue.write_parcel(tmp_path / "first" / "tiny", tmp_path / "brought")
    assert miniature_row("second", 9, "--go-on", str(tmp_path / "brought")) == 0
    assert "tiny: done" in capsys.readouterr().out
    assert miniature_row("second", 9, "--collect", str(tmp_path / "parcels" / "tiny")) == 0
    made = kept(tmp_path / "root")
    assert {"checkpoints/air-tiny/README.md", "results/queue/tiny.json", "results/queue/tiny-curve.png"} <= set(made)
    assert "| done: " in (tmp_path / "root" / "results" / "QUEUE.md").read_text()
