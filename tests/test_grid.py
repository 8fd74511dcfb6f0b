"""Sweeps: which runs a grid has, what is started, resumed, retried and reported; and a real single-node Slurm."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from air_model.configuration_air import VARIANTS
from air_model.records import append_runs_to
from air_model.scripts import run_grid as door
from air_model.scripts.run_grid import main
from air_model.training import run as run_module
from air_model.training import sweep as grid
from air_model.training.launch import alone_in
from air_model.training.miniature import miniature, miniature_data
from air_model.training.recipe import read_recipe
from air_model.training.run import load_data

pytestmark = pytest.mark.usefixtures("quick_ends")


def arguments(tmp_path: Path, **values) -> argparse.Namespace:
    defaults = {
        "suite": "level-token", "grid": [], "task": "sudoku", "recipe": None, "seeds": "0-1", "mini": False,
        "output_dir": tmp_path, "gpus_per_run": 1, "overrides": [],
    }  # fmt: skip
    return argparse.Namespace(**{**defaults, **values})


class Pretender:
    """A launcher whose runs end at once: finished, or failed as often as `failures` says."""

    def __init__(self, failures: dict[str, int] | None = None) -> None:
        self.failures, self.started = failures or {}, []

    def start(self, run: grid.Run) -> bool:
        self.started.append(run.name)
        return True

    def ended(self, run: grid.Run) -> int:
        if self.failures.get(run.name, 0) > 0:
            self.failures[run.name] -= 1
            return 1
        finish(run)
        return 0


def finish(run: grid.Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    report = {"status": "finished", "name": run.name, "date": "today", "max_steps": 1, "config": run.read().flat()}
    (run.folder / "run.json").write_text(json.dumps(report))


def test_the_suites_are_the_published_ones():
    assert {name: len(variants) for name, variants in grid.SUITES.items()} == {
        "injection": 8,
        "level-token": 4,
        "operator": 5,
    }
    assert all(variant in VARIANTS for variants in grid.SUITES.values() for variant in variants)


def test_the_ladder_has_every_variant_on_every_rung_and_the_small_table_twelve(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, suite="ladder", task=None, seeds="0"))
    assert len(runs) == 30 == len({run.folder for run in runs}) and {run.recipe for run in runs} == {"published_small"}
    assert runs[0].rung == "rope2d" and "position_embedding=rope2d" in runs[0].command()
    assert len(grid.make_runs(arguments(tmp_path, suite="small", task=None, seeds="0"))) == 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--grid", "lr=1e-3", "--grid", "lr=3e-3"], "--grid lr is given twice"),
        (["--grid", "lr=1e-3,3e-3", "lr=7e-3"], "lr= is given to all runs and as --grid lr"),
        (["--grid", "data=a/b.csv,a_b.csv"], "Two points of the grid would both be called data=a_b.csv-seed0"),
    ],
)
def test_a_grid_that_asks_for_two_things_at_once_is_refused(words, says, tmp_path, capsys):
    assert main(["--task", "sudoku", "--output-dir", str(tmp_path), "--dry-run", *words]) == 1
    assert says in capsys.readouterr().err


def test_a_grid_of_epochs_has_no_other_budget(tmp_path, capsys):
    assert (
        main(["--task", "sudoku", "--mini", "--output-dir", str(tmp_path), "--dry-run", "--grid", "epochs=1,2"]) == 0
    )
    assert " max_steps=" not in capsys.readouterr().out


def test_runs_in_this_process_finish_and_leave_their_curves(tmp_path, capsys):
    command = ["--grid", "variant=Lx_H,Lx_Hx", "--task", "sudoku", "--mini", "--output-dir", str(tmp_path)]
    curves = tmp_path / "curves.jsonl"
    command += ["--launcher", "here", "--curves", str(curves), "max_steps=2", "eval_every=1"]
    assert main(command) == 0
    rows = [json.loads(line) for line in curves.read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["Lx_H", "Lx_Hx"] and set(rows[0]["exact"]) == {"1", "2"}
    assert rows[0]["precision"].startswith(("fp32", "bf16"))
    assert f"runs in {curves}: 2" in capsys.readouterr().out


def test_a_signal_at_the_very_end_of_a_run_in_this_process_still_ends_the_grid(tmp_path, monkeypatch):
    finish, curves = run_module._finish, tmp_path / "curves.jsonl"

    def interrupted(trainer):
        report = finish(trainer)
        os.kill(os.getpid(), signal.SIGTERM)
        return report

    monkeypatch.setattr(run_module, "_finish", interrupted)
    command = ["--grid", "variant=Lx_H,Lx_Hx", "--task", "sudoku", "--mini", "--output-dir", str(tmp_path)]
    assert main([*command, "--launcher", "here", "--curves", str(curves), "max_steps=2"]) == 130
    assert [json.loads(line)["variant"] for line in curves.read_text().splitlines()] == ["Lx_H"]


def test_the_curve_of_a_run_without_evaluation_data_is_empty_and_its_layers_are_the_models(tmp_path):
    report = {"variant": "TRM", "seed": 0, "grid": [4, 4], "config": {"variant": "TRM"}, "parameters": 9}
    report |= {"metrics": {"eval": None}, "wall_seconds": 1.0, "date": "2026-01-01T00:00", "precision": "fp32"}
    report["model_config"] = {"num_hidden_layers": 2}  # those of the variant's row: the recipe names none
    run = SimpleNamespace(name="a", rung="", folder=tmp_path / "a", finished=lambda: True, report=lambda: report)
    assert grid.write_curves([run], tmp_path / "curves.jsonl") == 1
    row = json.loads((tmp_path / "curves.jsonl").read_text())
    assert (row["n"], row["exact"], row["layers"]) == (None, {}, 2)


def test_runs_whose_curves_are_known_are_not_made_again(tmp_path, capsys):
    command = ["--grid", "variant=Lx_H,Lx_Hx", "--task", "sudoku", "--output-dir", str(tmp_path), "--dry-run"]
    curves = tmp_path / "curves.jsonl"
    curves.write_text(json.dumps({"suite": "grid-sudoku", "name": "Lx_H-seed0"}) + "\n")
    assert main([*command, "--curves", str(curves)]) == 0
    assert [line.count("variant=Lx_Hx") for line in capsys.readouterr().out.splitlines()] == [1]
    command[1] = "variant=Lx_H"
    assert main([*command, "--curves", str(curves), "--launcher", "slurm"]) == 0
    assert "All 1 runs are in" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "sentence"), [(None, "is a folder"), ('{"suite": "x"}', "without suite and name")])
def test_what_is_no_file_of_curves_is_refused_before_a_run_begins(tmp_path, capsys, text, sentence):
    curves = tmp_path / "curves.jsonl"
    curves.write_text(text) if text else curves.mkdir()
    command = ["--grid", "variant=Lx_H", "--task", "sudoku", "--mini", "--output-dir", str(tmp_path / "runs")]
    assert main([*command, "--launcher", "here", "--curves", str(curves)]) == 1
    assert sentence in capsys.readouterr().err and not list((tmp_path / "runs").glob("*/*/run.json"))


def test_seeds_are_read_as_ranges_and_lists():
    assert grid.parse_seeds("0-4") == [0, 1, 2, 3, 4] and grid.parse_seeds("7,0-1") == [7, 0, 1]
    with pytest.raises(ValueError, match="0-4"):
        grid.parse_seeds("all")


def test_sigterm_ends_a_grid_whose_shell_made_it_ignore_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "run_grid", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as after `command &` in a script
    try:
        assert main(["--task", "sudoku", "--grid", "variant=Lx_H,HRM", "--output-dir", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_suite_is_every_variant_and_seed_on_the_tasks_recipe(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, suite="injection", task="maze", seeds="0-4"))
    assert len(runs) == 40 == len({run.folder for run in runs})
    assert {run.recipe for run in runs} == {"maze_hard"}
    command = runs[0].command("python")
    assert "--resume" in command and "variant=L_Hx" in command and "seed=0" in command


def test_any_grid_is_the_product_of_its_axes(tmp_path):
    values = {"suite": None, "task": None, "recipe": "sudoku_6x6", "grid": ["lr=1e-3,3e-3", "variant=Lx_H,HRM"]}
    runs = grid.make_runs(arguments(tmp_path, **values, seeds="0"))
    assert {(run.overrides["lr"], run.overrides["variant"]) for run in runs} == {
        ("1e-3", "Lx_H"), ("1e-3", "HRM"), ("3e-3", "Lx_H"), ("3e-3", "HRM"),
    }  # fmt: skip


def test_several_seeds_of_one_recipe_are_a_grid(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, suite=None, task=None, recipe="sudoku_6x6", seeds="0-2,1"))
    assert [run.name for run in runs] == ["seed0", "seed1", "seed2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"suite": None, "seeds": "0"},
        {"grid": ["lr=1e-3,1e-3"]},
        {"grid": ["lr"]},
        {"grid": ["variant=LxH"], "suite": None},
        {"overrides": ["lrr=1"]},
        {"overrides": ["seed=3"]},
        {"grid": ["seed=0,1"]},
        {"overrides": ["run-name=mine"]},
        {"overrides": ["position_embedding=rope3d"]},
        {"overrides": ["hidden_size=30", "num_attention_heads=4"]},
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError):
        grid.make_runs(arguments(tmp_path, **wrong))


def test_values_with_commas_of_their_own_are_swept(tmp_path):
    assert grid.split_values("[row,all],null") == ["[row,all]", "null"]
    assert grid.split_values("{0: [1, 1]},'a,b'") == ["{0: [1, 1]}", "'a,b'"]
    values = {"suite": None, "task": None, "recipe": "sudoku_6x6", "grid": ["head_relations=[row,all],null"]}
    runs = grid.make_runs(arguments(tmp_path, **values, seeds="0"))
    assert [run.read().flat()["head_relations"] for run in runs] == [["row", "all"], None]
    assert all(run.folder.name == run.overrides["run_name"] and "[" not in run.folder.name for run in runs)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    words = ["--suite", "operator", "--task", "maze", "--mini", "--seeds", "0", "--dry-run"]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    assert "variant=minus_x" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_half_done_grid_goes_on_with_what_is_left(tmp_path):
    runs = grid.make_runs(arguments(tmp_path))
    for run in runs[:3]:
        finish(run)
    launcher = Pretender()
    states = grid.run_grid(runs, launcher, poll_seconds=0)
    assert launcher.started == [run.name for run in runs[3:]] and set(states.values()) == {"finished"}


def test_a_finished_run_of_other_values_is_run_again(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, overrides=["lr=1e-3"]))
    finish(runs[0])
    again = grid.make_runs(arguments(tmp_path, overrides=["lr=2e-3"]))
    assert runs[0].finished() and not again[0].finished()


def test_a_failure_is_retried_and_then_reported(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, seeds="0"))
    launcher = Pretender({runs[0].name: 1, runs[1].name: 5})
    states = grid.run_grid(runs, launcher, retries=1, poll_seconds=0)
    assert states[runs[0].name] == "finished" and states[runs[1].name] == "failed"
    assert launcher.started.count(runs[1].name) == 2


@pytest.mark.parametrize(("recipe", "cells"), [("maze_small", 36), ("sudoku_6x6", 16)])
def test_a_miniature_of_any_recipe_trains_on_data_of_its_task_and_in_their_size(tmp_path, recipe, cells):
    named = {"suite": None, "task": None, "recipe": recipe, "grid": ["lr=1e-3,3e-3"], "mini": True}
    train_set, test_set = load_data(grid.make_runs(arguments(tmp_path, **named))[0].read())
    assert train_set.task.seq_len == test_set.task.seq_len == cells


def test_a_miniature_of_the_ladder_has_a_head_for_every_relation(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, suite="ladder", task=None, seeds="0", mini=True))
    assert {run.overrides["num_attention_heads"] for run in runs} == {4}


def test_a_miniature_takes_epochs_as_its_budget(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, mini=True, overrides=["epochs=2"]))
    assert runs[0].read().flat()["epochs"] == 2 and runs[0].read().flat()["max_steps"] is None


def test_a_run_that_another_process_still_trains_is_waited_for_and_is_no_failure(tmp_path, monkeypatch):
    run = grid.make_runs(arguments(tmp_path, seeds="0"))[0]
    run.folder.mkdir(parents=True)
    launcher, polls = Pretender(), []

    def the_other_ends(seconds):
        polls.append(seconds)
        if len(polls) == 3:
            finish(run)

    monkeypatch.setattr(grid.time, "sleep", the_other_ends)
    with alone_in(run.folder):
        assert grid.run_grid([run], launcher, poll_seconds=0) == {run.name: "finished"}
    assert launcher.started == [] and run.attempts == 0 and len(polls) == 3


def test_a_run_whose_folder_was_taken_meanwhile_waits_without_an_attempt(tmp_path):
    class Taken(Pretender):
        def ended(self, run):
            return grid.TAKEN if len(self.started) == 1 else super().ended(run)

    run = grid.make_runs(arguments(tmp_path, seeds="0"))[0]
    launcher = Taken()
    assert grid.run_grid([run], launcher, retries=0, poll_seconds=0) == {run.name: "finished"}
    assert launcher.started == [run.name] * 2


def test_a_grid_that_fails_leaves_no_run_behind(tmp_path, capsys):
    words = ["--suite", "level-token", "--task", "sudoku", "--mini", "--output-dir", str(tmp_path), "--parallel", "2"]
    folder = tmp_path / "level-token-sudoku"
    folder.mkdir()
    (folder / "L2x_H2x_add-seed0").write_text("in the way of the second run")
    assert main(words) == 1
    assert "run_grid: " in capsys.readouterr().err
    assert not grid.is_taken(folder / "L2x_H2x-seed0")


def test_reports_are_appended_once(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, seeds="0"))
    finish(runs[0])
    target = tmp_path / "results" / "runs.jsonl"
    reports = [run.report() for run in runs if run.finished()]
    assert (append_runs_to(target, reports), append_runs_to(target, reports)) == (1, 0)
    assert len(target.read_text().splitlines()) == 1


@pytest.mark.parametrize("task", ["sudoku", "maze"])
def test_the_miniature_data_loads_and_is_the_same_every_time(tmp_path, task):
    from air_model.datasets_builders import load_puzzles

    sets = [load_puzzles(miniature_data(task, tmp_path / name), "train") for name in ("a", "b")]
    assert sets[0].task.name == task and len(sets[0]) == 64 and sets[0].fingerprint == sets[1].fingerprint


def test_a_real_run_of_a_miniature_suite_finishes_and_is_not_repeated(tmp_path, capsys):
    command = ["--grid", "variant=Lx_H", "--task", "sudoku", "--mini", "--output-dir", str(tmp_path), "max_steps=2"]
    command += ["--launcher", "here", "lr=1e-3", "epochs=null"]
    assert main(command) == 0
    before = os.stat(next(tmp_path.rglob("run.json"))).st_mtime_ns
    assert main(command) == 0
    assert os.stat(next(tmp_path.rglob("run.json"))).st_mtime_ns == before
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("suite, task", [("injection", "sudoku"), ("level-token", "sudoku"), ("operator", "maze")])
def test_a_miniature_of_every_suite_runs(tmp_path, suite, task):
    command = [
        "--suite",
        suite,
        "--task",
        task,
        "--mini",
        "--output-dir",
        str(tmp_path),
        "max_steps=4",
        "--seeds",
        "0",
    ]
    assert main([*command, "--append-runs", str(tmp_path / "runs.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == grid.SUITES[suite]


# ---- a real Slurm, from Debian's packages: apt-get install slurm-wlm munge


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """munged, slurmctld and slurmd of one node, in a folder of their own; needs root, as the real ones do."""
    daemons = {name: shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("munged", "slurmctld", "slurmd")}
    if not all(daemons.values()) or os.geteuid() != 0:
        pytest.skip("needs root and the Debian packages slurm-wlm and munge")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    for path in (folder, *folder.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)  # munged wants its socket to be within everybody's reach
    host = socket.gethostname().split(".")[0]
    lines = [
        "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", "AuthType=auth/munge", "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge.socket", "SlurmUser=root", "SlurmdUser=root",
        f"StateSaveLocation={folder}/state", f"SlurmdSpoolDir={folder}/spool", f"SlurmctldPidFile={folder}/c.pid",
        f"SlurmdPidFile={folder}/d.pid", f"SlurmctldPort={free_port()}", f"SlurmdPort={free_port()}",
        "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU", "JobAcctGatherType=jobacct_gather/none", "MailProg=/bin/true",
        "ReturnToService=2", "KillWait=30", "SchedulerParameters=sched_interval=1",
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN",
        f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    ]  # fmt: skip
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    munge = [f"--{key}={folder}/munge.{key.split('-')[0]}" for key in ("socket", "pid-file", "log-file", "seed-file")]
    commands = [
        [daemons["munged"], "--foreground", "--force", f"--key-file={folder}/key", *munge],
        [daemons["slurmctld"], "-D", "-f", str(folder / "slurm.conf")],
        [daemons["slurmd"], "-D", "-f", str(folder / "slurm.conf")],
    ]
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "AIR_PYTHON": sys.executable}
    os.environ.update(environment)
    running = []
    try:
        with (folder / "daemons.log").open("w") as log:
            for command in commands:
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
                time.sleep(2)
        for _ in range(60):
            if "idle" in subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout:
                break
            time.sleep(1)
        else:
            pytest.skip(f"Slurm did not come up here: {(folder / 'daemons.log').read_text()[-500:]}")
        yield folder
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)
        for name in environment:
            os.environ.pop(name, None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_miniature_grid_runs_under_a_real_slurm(slurm, tmp_path):
    command = [
        "--grid",
        "variant=Lx_H,HRM",
        "--task",
        "sudoku",
        "--mini",
        "--launcher",
        "slurm",
        "--cpus-per-run",
        "1",
    ]
    assert main([*command, "--output-dir", str(tmp_path), "max_steps=4"]) == 0
    assert len(list(tmp_path.rglob("model_last/model.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_slurm_preempts_saves_and_the_next_one_goes_on(slurm, tmp_path):
    data = miniature_data("sudoku", tmp_path / "data")
    values = {**miniature({}), "data": str(data), "max_steps": 4000, "save_every": 100, "eval_every": 0}
    log, checkpoints = tmp_path / "job.log", tmp_path / "run" / "checkpoints"

    def submit(max_steps: int) -> str:
        command = ["sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1", "--gpus-per-node=0"]
        command += ["scripts/train.slurm"]
        overrides = [f"{key}={json.dumps(value)}" for key, value in {**values, "max_steps": max_steps}.items()]
        command += ["sudoku_extreme", str(tmp_path / "run"), *overrides]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    def wait(condition, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, log.read_text()[-1000:]
            time.sleep(0.2)

    job = submit(4000)
    wait(lambda: any(checkpoints.glob("checkpoint_*")))
    subprocess.run(["scancel", "--signal=TERM", job], check=True)  # what --signal=TERM@120 and preemption send
    wait(lambda: "Stopped by signal" in log.read_text())
    stopped = max(int(path.name.split("_")[1]) for path in checkpoints.glob("checkpoint_*"))
    submit(stopped + 5)
    wait(lambda: json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished")
    assert f"checkpoint_{stopped}: {stopped} of {stopped + 5} steps done" in log.read_text()


# ---- where runs write, and what is shown


@pytest.mark.timeout(200)
def test_a_grid_writes_where_it_was_called_from_and_takes_a_clean_stop_for_no_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    miniature_data("sudoku", tmp_path / "data")
    lines = {**miniature({}), "variant": "Lx_H", "task": "sudoku", "data": "data", "max_steps": 2, "eval_every": 0}
    (tmp_path / "mine.yaml").write_text(json.dumps(lines))
    words = ["--output-dir", "out", "--recipe", "mine.yaml", "--grid", "lr=1e-2", "--retries", "0"]
    # Every session stops after one step; the run is done when all of them are.
    assert main([*words, "max_minutes=1e-9", "save_every=1", "log_every=1"]) == 0
    report = json.loads((tmp_path / "out/grid-mine/lr=1e-2-seed0/run.json").read_text())
    assert report["status"] == "finished" and report["steps"] == 2


def test_a_table_fits_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid.shutil, "get_terminal_size", lambda: os.terminal_size((60, 10)))
    runs = grid.make_runs(arguments(tmp_path, seeds="0-9"))
    table = grid.Table(runs)
    table.live = True
    table.draw({run.name: "waiting" for run in runs} | {runs[-1].name: "running"})
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(lines) <= 9 and max(map(len, lines)) < 60
    assert lines[0].startswith(runs[-1].name) and lines[-1].endswith("not shown")


def test_a_damaged_line_does_not_keep_reports_from_being_appended(tmp_path):
    runs = grid.make_runs(arguments(tmp_path, seeds="0"))
    finish(runs[0])
    target = tmp_path / "runs.jsonl"
    target.write_text('{"name": "a", "date": "b"}\n\n{"name"\n')
    assert append_runs_to(target, [runs[0].report()]) == 1 and append_runs_to(target, [runs[0].report()]) == 0


@pytest.mark.parametrize("wrong", [{"parallel": 0}, {"gpus_per_run": -1}, {"retries": -1}])
def test_numbers_of_machines_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="or more, got"):
        grid.make_runs(arguments(tmp_path, **wrong))


def test_runs_in_this_process_end_with_the_status_of_their_command(tmp_path):
    data = miniature_data("sudoku", tmp_path / "data")
    small = {**miniature(read_recipe("published_small").model, steps=4), "data": str(data)}
    here, ends = grid.Here(), {}
    for name, values in (("good", small), ("bad", {**small, "data": str(tmp_path / "nowhere")})):
        run = grid.Run(name, tmp_path / name, "published_small", values)
        assert here.start(run)
        ends[name] = here.ended(run)
    assert ends == {"good": 0, "bad": 1}
    assert "error: " in (tmp_path / "bad" / "log.txt").read_text()
