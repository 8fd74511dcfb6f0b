"""Never lose a run: checkpoints, kills, signals, full disks, and what may change on resume."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, own_process
from safetensors.torch import load_file
from training_runs import command, same, trainer, wait_for, weights

from air_model import train_accelerate as ta
from air_model.records import append_runs_to, read_json, source_state, whole_folder
from air_model.training import checkpoints
from air_model.training import run as whole
from air_model.training import trainer as loop
from air_model.training.checkpoints import CheckpointStore, _hash
from air_model.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_ends")


def metrics(folder: Path) -> list[dict]:
    """What a run logged, but for its speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own code gets to clean up."""


@pytest.mark.parametrize("point", ["between steps", "before the rename", "half a file", "before the old one goes"])
def test_a_run_killed_at_any_point_resumes_to_the_same_bits(recipe, finished, tmp_path, monkeypatch, point):
    step, finish, save, replace = Trainer.train_step, CheckpointStore.finish, checkpoints.save_tensors, os.replace

    def step_then_die(self):
        if self.step == 7:
            raise Killed
        step(self)

    def die_before_rename(self, temporary, number):
        if number == 8:
            raise Killed
        return finish(self, temporary, number)

    def die_in_a_file(tensors, path):
        if path.name == "optimizer.safetensors" and ".checkpoint_8" in str(path):
            path.write_bytes(b"half")
            raise Killed
        save(tensors, path)

    def die_before_deleting(source, target):
        replace(source, target)
        if str(target).endswith(".checkpoint_4.old"):
            raise Killed

    with monkeypatch.context() as patch:
        if point == "between steps":
            patch.setattr(Trainer, "train_step", step_then_die)
        elif point == "before the rename":
            patch.setattr(CheckpointStore, "finish", die_before_rename)
        elif point == "half a file":
            patch.setattr(checkpoints, "save_tensors", die_in_a_file)
        else:
            patch.setattr(os, "replace", die_before_deleting)
        with pytest.raises(Killed):
            recipe("killed")
    assert recipe("killed", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "killed"))
    assert metrics(finished) == metrics(tmp_path / "killed")
    assert {p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()} == {"checkpoint_8", "checkpoint_12"}


@pytest.mark.parametrize(
    "values", [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"optimizer": "muon_adamw", "corrupted_share": 0.5}]
)
def test_every_optimizer_and_puzzles_begun_wrong_resume_to_the_same_bits(recipe, tmp_path, values, monkeypatch):
    assert recipe("whole", **values, max_steps=6, eval_every=0) == 0
    step = Trainer.train_step

    def step_then_die(self):
        if self.step == 5:
            raise Killed
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_then_die)
        with pytest.raises(Killed):
            recipe("killed", **values, max_steps=6, eval_every=0)
    assert recipe("killed", "--resume", **values, max_steps=6, eval_every=0) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def train_and_hang(arguments: list[str]) -> None:
    """Trains, and gets nowhere after 40 steps: a slow watcher never finds it finished."""
    step = Trainer.train_step
    Trainer.train_step = lambda self: time.sleep(600) if self.step == 40 else step(self)
    ta.main(arguments)


@pytest.fixture
def one_thread():
    """As many as `own_process` has: another number adds up in another order, and bits are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_real_sigkill_loses_nothing(recipe, tmp_path, one_thread):
    values = {"max_steps": 60, "save_every": 5, "eval_every": 0, "log_every": 10}
    assert recipe("whole", **values) == 0
    process = own_process(train_and_hang, command(tmp_path, "killed")[1:])
    wait_for(tmp_path / "killed" / "checkpoints" / "checkpoint_10")
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert recipe("killed", "--resume", **values) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_sigterm_saves_the_step_it_came_in_and_exits_cleanly(recipe, finished, tmp_path, monkeypatch):
    step = Trainer.train_step

    def step_and_signal(self):
        step(self)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_signal)
        assert recipe("run") == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run" / "checkpoints" / "checkpoint_5").is_dir()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert recipe("run", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "run")) and metrics(finished) == metrics(tmp_path / "run")


def test_sigterm_in_the_set_up_ends_cleanly_before_the_first_step(recipe, finished, tmp_path, monkeypatch):
    load = whole.load_data

    def load_and_signal(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*args)

    with monkeypatch.context() as patch:
        patch.setattr(whole, "load_data", load_and_signal)
        assert recipe("run") == 0
    report = json.loads((tmp_path / "run/run.json").read_text())
    assert (report["status"], report["steps"]) == ("stopped", 0)
    assert recipe("run", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "run"))


def test_sigterm_after_the_last_step_does_not_cost_the_record(recipe, tmp_path, monkeypatch):
    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(whole, "leave_curve", signalled)
    assert recipe("run", "--append-runs", str(tmp_path / "runs.jsonl")) == 0
    assert json.loads((tmp_path / "runs.jsonl").read_text())["status"] == "finished"


def evaluations(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/exact_accuracy" in row]


@pytest.mark.parametrize("nth, last", [(0, 6), (1, 12), (2, 12)])
def test_sigterm_ends_an_evaluation_which_the_resumed_run_makes_up_for(recipe, tmp_path, monkeypatch, nth, last):
    evaluate, calls = loop.evaluate_model, []

    def signalled(*args, **kwargs):
        calls.append(None)
        if len(calls) == nth + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_model", signalled)
        assert recipe("run", final_eval_limit=10) == 0
    report = json.loads((tmp_path / "run/run.json").read_text())
    assert (report["status"], report["steps"]) == ("stopped", last) and len(evaluations(tmp_path / "run")) == nth
    assert recipe("run", "--resume", final_eval_limit=10) == 0 and recipe("whole", final_eval_limit=10) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "run")
    best = [json.loads((tmp_path / name / "run.json").read_text())["metrics"]["best"] for name in ("whole", "run")]
    assert best[0] == best[1]


class FullDisk:
    """A text stream on a disk without space."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = isatty = lambda self: False


def test_a_log_on_a_full_disk_does_not_stop_the_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    assert recipe("run") == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def test_half_a_line_of_metrics_costs_that_line_alone(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    words = ("--resume", "--append-runs", str(tmp_path / "runs.jsonl"))
    assert recipe("run", *words) == 0
    (tmp_path / "run/curve.png").unlink()
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": \xff{"step": 12}\n[]\n')
    assert recipe("run", *words) == 0  # finished already, and its picture is drawn again
    assert (tmp_path / "run/curve.png").is_file()
    (tmp_path / "run/run.json").write_text("[]")
    assert recipe("run", *words) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def test_metrics_that_could_not_be_written_whole_are_not_left_in_half(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.journal.record(0, {"a": 1.0})
    before = (tmp_path / "metrics.jsonl").read_text()

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **how: Half(real(self, *args, **how)))
    run.journal.record(0, {"a": 2.0})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_run_names_the_commit_that_it_started_on(recipe, tmp_path, monkeypatch):
    source_state.cache_clear()
    step, run = Trainer.train_step, subprocess.run
    before = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None

    def commit_meanwhile(self):
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: run(["echo", "another"], **kwargs))
        step(self)

    monkeypatch.setattr(Trainer, "train_step", commit_meanwhile)
    assert recipe("run", max_steps=1) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["commit"] == before


def test_a_recipe_that_cannot_run_costs_no_earlier_run(recipe, tmp_path, capsys):
    assert recipe("run") == 0
    assert recipe("run", "--overwrite", data=str(tmp_path / "nowhere")) == 1
    assert (tmp_path / "run/run.json").is_file() and weights(tmp_path / "run")
    assert recipe("run", "--overwrite", max_steps=4) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["steps"] == 4


def test_records_are_appended_on_a_line_of_their_own(tmp_path):
    target = tmp_path / "runs.jsonl"
    target.write_text('{"name": "a", "date": "x"}')  # an editor left the last line open
    assert append_runs_to(target, [{"name": "b", "date": "y"}]) == 1
    assert [json.loads(line)["name"] for line in target.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "missing"])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(recipe, finished, tmp_path, damage):
    newest = shutil.copytree(finished, tmp_path / "run") / "checkpoints" / "checkpoint_12"
    file = newest / "optimizer.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-7] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        file.unlink()
    with pytest.warns(UserWarning, match="checkpoint_12 is damaged"):
        assert recipe("run", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "run"))


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(recipe, tmp_path, monkeypatch, capsys):
    save = checkpoints.save_tensors

    def full(tensors, path):
        if ".checkpoint_8" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_tensors", full)
        assert recipe("run") == 0
    assert "checkpoint 8 could not be written" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"checkpoint_4", "checkpoint_12"}


def test_a_disk_that_is_full_at_the_end_is_an_error_that_says_how_to_go_on(recipe, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_model_folder", full)
        assert recipe("run") == 1
    error = capsys.readouterr().err
    assert "the best model so far could not be written" in error and "--resume" in error
    assert recipe("run", "--resume") == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_an_evaluation_that_fails_costs_no_training_step(recipe, finished, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_model", fail)
        with pytest.raises(RuntimeError, match="boom"):
            recipe("run", save_every=100)
    state = read_json(tmp_path / "run" / "checkpoints" / "checkpoint_6" / "state.json")
    assert state["work"]["steps"] == 6 and state["seconds"] > 0
    capsys.readouterr()
    assert recipe("run", "--resume", save_every=100) == 0
    assert "step 6: exact_accuracy" in capsys.readouterr().err  # made up for
    assert same(weights(finished), weights(tmp_path / "run"))


def test_a_run_whose_evaluation_always_fails_goes_on_without(recipe, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(loop, "evaluate_model", fail)
    with pytest.raises(RuntimeError, match="boom"):
        recipe("run")
    with pytest.raises(RuntimeError, match="boom"):  # that of the end
        recipe("run", "--resume", eval_every=0)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint_12").is_dir()


def test_an_evaluation_that_is_made_again_has_one_line(recipe, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_model", fail)  # after the line was written
        with pytest.raises(RuntimeError, match="boom"):
            recipe("run")
    assert recipe("run", "--resume") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/exact_accuracy" in row] == [6, 12]


def test_out_of_memory_is_a_sentence_that_says_what_to_change(recipe, monkeypatch, capsys):
    def full(_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB.\nstack of the allocator")

    def empty(_):
        raise MemoryError  # Python's own says nothing

    monkeypatch.setattr(Trainer, "train_step", full)
    assert recipe("run") == 1
    error = capsys.readouterr().err
    assert "Tried to allocate 9 GiB. Out of memory. A new run with" in error and "stack of the" not in error
    monkeypatch.setattr(Trainer, "train_step", empty)
    assert recipe("other") == 1
    assert "error: MemoryError Out of memory." in capsys.readouterr().err


def test_what_a_kill_left_of_a_model_folder_is_put_right(recipe, tmp_path):
    run = tmp_path / "run"
    assert recipe("run", max_steps=6) == 0
    os.replace(run / "model", run / ".model.old")  # killed between the two renames
    for left in (".model.tmp", "..model.tmp-abc", ".model_last.old"):
        (run / left).mkdir()
    assert ta.main(["--recipe", str(tmp_path / "tiny.yaml"), "--output-dir", str(run), "--resume"]) == 0
    assert not [path.name for path in run.glob(".*model*")]
    assert (run / "model" / "config.json").is_file()


def test_a_folder_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in "ab":
        with whole_folder(tmp_path / "link") as folder:
            (folder / name).touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "real").iterdir()] == ["b"]
    with pytest.raises(ValueError, match="b is a file, not a folder"), whole_folder(tmp_path / "real" / "b" / "c"):
        raise AssertionError


def test_a_folder_survives_a_kill_between_the_renames_and_a_write_that_fails(tmp_path):
    (tmp_path / ".m.old").mkdir()
    (tmp_path / ".m.old" / "good").touch()
    with pytest.raises(OSError), whole_folder(tmp_path / "m"):
        raise OSError(errno.ENOSPC, "disk full")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["m", "m/good"]


def test_two_processes_that_write_a_folder_do_not_mix_their_files(tmp_path):
    def write() -> None:
        with whole_folder(tmp_path / "m") as folder:
            (folder / "theirs").touch()

    with whole_folder(tmp_path / "m") as folder:
        (folder / "ours").touch()
        other = own_process(write)
        other.join(60)
        assert other.exitcode == 0 and [path.name for path in (tmp_path / "m").iterdir()] == ["theirs"]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["m", "m/ours"]


def test_a_run_that_starts_anew_takes_no_model_of_the_one_before(recipe, tmp_path):
    stale = tmp_path / "run" / ".model.old"
    stale.mkdir(parents=True)
    (stale / "stale").touch()
    single = {"data": str(tmp_path / "train.csv"), "eval_every": 0}
    shutil.copy(recipe.data / "train.csv", tmp_path / "train.csv")
    assert recipe("run", "--overwrite", max_steps=2, **single) == 0
    assert not (tmp_path / "run" / "model" / "stale").exists() and not stale.exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_state_before_it(recipe, tmp_path, monkeypatch, capsys):
    step = Trainer.train_step

    def poisoned(self):
        if self.step == 6:
            with torch.no_grad():
                self.slots.carry.z_h.fill_(float("nan"))
                self.slots.halted.fill_(False)
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", poisoned)
        assert recipe("run") == 1
    error = capsys.readouterr().err
    assert "step 7" in error and "checkpoint_6" in error
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint_6" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_resuming_with_another_recipe_is_refused_with_the_differences(recipe, tmp_path, capsys):
    assert recipe("run", max_steps=4) == 0
    assert recipe("run", "--resume", max_steps=4, lr=0.5, hidden_size=32) == 1
    error = capsys.readouterr().err
    assert "lr: 0.01 -> 0.5" in error and "hidden_size: 16 -> 32" in error and "batch_size" not in error


def test_what_changes_no_weight_may_change_on_resume(recipe, tmp_path):
    assert recipe("whole", save_every=6) == 0
    assert recipe("longer", max_steps=6) == 0  # the rate is constant, so the budget decides nothing but the end
    assert recipe("longer", "--resume", max_steps=12, log_every=3) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "longer"))


def test_a_model_key_written_out_with_the_value_that_it_had_is_no_change(recipe, tmp_path, capsys):
    assert recipe("run", max_steps=4) == 0
    assert recipe("run", "--resume", max_steps=6, rope_theta=10000.0, loss_type="stablemax_cross_entropy") == 0
    assert recipe("run", "--resume", max_steps=8) == 0  # and back
    assert recipe("run", "--resume", max_steps=9, rope_theta=20) == 1
    assert "rope_theta: 10000.0 -> 20" in capsys.readouterr().err


def test_the_same_puzzles_may_lie_elsewhere_on_resume(recipe, tmp_path, data):
    assert recipe("whole", max_steps=6) == 0
    assert recipe("moved", max_steps=4) == 0
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    assert recipe("moved", "--resume", max_steps=6, data=str(elsewhere)) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "moved"))


def test_a_resumed_run_needs_the_model_it_started_from_no_more(recipe, tmp_path):
    assert recipe("first", max_steps=4) == 0
    source = str(tmp_path / "first" / "model_last")
    assert recipe("whole", init_from=source, max_steps=6, ema=0.9) == 0
    assert recipe("run", init_from=source, max_steps=4, ema=0.9) == 0
    shutil.rmtree(tmp_path / "first")
    assert recipe("run", "--resume", init_from=source, max_steps=6, ema=0.9) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [run["name"] for run in report["earlier_runs"]] == ["first"]


def test_a_run_may_get_another_budget_until_its_rate_falls(recipe, tmp_path, capsys):
    falling = {"lr_min_ratio": 0.0, "schedule": "linear_tail", "tail_share": 0.5}
    assert recipe("whole", max_steps=8, **falling) == 0
    assert recipe("run", max_steps=4, lr_min_ratio=1.0) == 0
    assert recipe("run", "--resume", max_steps=8, **falling) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert recipe("run", "--resume", max_steps=12, **falling) == 1
    error = capsys.readouterr().err
    assert "max_steps: 8 -> 12" in error and f"init_from={tmp_path / 'run' / 'model_last'}" in error


def test_no_checkpoint_holds_a_pickle(recipe, tmp_path):
    assert recipe("run", max_steps=4) == 0
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".jsonl", ".png", ".py"}


def test_a_checkpoint_from_before_a_new_recipe_key_still_resumes(recipe, tmp_path):
    assert recipe("run", max_steps=4) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint_4"
    state = json.loads((checkpoint / "state.json").read_text())
    del state["recipe"]["init_from"], state["recipe"]["tail_share"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {
        "bytes": (checkpoint / "state.json").stat().st_size,
        "sha256": _hash(checkpoint / "state.json"),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert recipe("run", "--resume", max_steps=6) == 0


def test_damaged_checkpoints_take_no_place_of_good_ones(recipe, tmp_path):
    assert recipe("a", total_limit=1) == 0
    (tmp_path / "a/checkpoints/checkpoint_12/optimizer.safetensors").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="damaged"):
        assert recipe("a", "--resume", total_limit=1, max_minutes=1e-9) == 0
    assert [step for step, _ in CheckpointStore(tmp_path / "a/checkpoints").found()] == [1]
    assert recipe("a", "--resume", total_limit=1) == 0


def test_a_copy_of_a_checkpoint_is_not_counted(tmp_path):
    for name in ("checkpoint_4", "checkpoint_4_backup", "checkpoint_x"):
        (tmp_path / name).mkdir()
    assert CheckpointStore(tmp_path).found() == [(4, tmp_path / "checkpoint_4")]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    run = trainer(tmp_path)
    run.train_step()
    assert checkpoints.save_checkpoint(run)
    with torch.no_grad():
        next(run.model.parameters())[0] = float("nan")
    run.step += 1
    with pytest.raises(loop.BadLoss, match="step 2 left weights"):
        checkpoints.save_checkpoint(run)
    assert [step for step, _ in run.store.found()] == [1]


def test_a_finished_run_that_is_resumed_keeps_its_numbers_and_is_appended_once(recipe, tmp_path):
    words = ("--resume", "--append-runs", str(tmp_path / "new/runs.jsonl"))
    assert recipe("a", *words) == 0
    before = (tmp_path / "a/run.json").read_text(), (tmp_path / "a/metrics.jsonl").read_text()
    assert recipe("a", *words) == 0
    assert before == ((tmp_path / "a/run.json").read_text(), (tmp_path / "a/metrics.jsonl").read_text())
    assert len((tmp_path / "new/runs.jsonl").read_text().splitlines()) == 1
    assert json.loads(before[0])["tflops"] > 0


def test_a_run_resumed_for_its_final_evaluation_keeps_its_speed_and_repeats_no_line(recipe, tmp_path):
    assert recipe("a") == 0
    whole = json.loads((tmp_path / "a/run.json").read_text())
    lines = (tmp_path / "a/metrics.jsonl").read_text()
    (tmp_path / "a/run.json").write_text(json.dumps({**whole, "status": "running"}))
    assert recipe("a", "--resume") == 0
    again = json.loads((tmp_path / "a/run.json").read_text())
    assert [again[k] for k in ("tflops", "puzzles_per_second")] == [whole[k] for k in ("tflops", "puzzles_per_second")]
    assert (tmp_path / "a/metrics.jsonl").read_text() == lines


def test_fewer_steps_than_were_done_are_refused_on_resume(recipe, tmp_path, capsys):
    assert recipe("a", lr_min_ratio=1.0) == 0
    assert recipe("a", "--resume", lr_min_ratio=1.0, max_steps=4) == 1
    assert "12 steps already, more than max_steps=4" in capsys.readouterr().err
