"""A training run: its files, stages, trackers, several processes, what is kept, counted and refused."""

import contextlib
import errno
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, own_process, tiny_model
from safetensors.torch import load_file
from training_runs import TINY, apart, command, same, sudokus, trainer, wait_for, weights

from air_model import AirModel
from air_model import train_accelerate as ta
from air_model.records import (
    all_seconds,
    command_line,
    earlier_runs,
    model_name,
)
from air_model.training.checkpoints import _hash
from air_model.training.journal import lasting_id
from air_model.training.launch import TAKEN, alone_in, refuse_lonely_process
from air_model.training.miniature import miniature_data
from air_model.training.recipe import RECIPES
from air_model.training.stages import read_stages
from air_model.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_ends")


# ---- a run and its files


def test_a_run_without_evaluation_data_ships_its_last_weights_when_it_goes_on(recipe, tmp_path):
    data = str(miniature_data("sudoku", tmp_path / "data") / "train.csv")
    assert recipe("run", data=data, eval_data=None, max_steps=2) == 0
    assert recipe("run", "--resume", data=data, eval_data=None, max_steps=4) == 0
    best, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("model", "model_last"))
    assert same(best, last)


def test_start_step_counts_on_where_an_earlier_machine_stopped(tmp_path, recipe):
    assert recipe("first", max_steps=4, eval_every=0) == 0
    source = str(tmp_path / "first" / "model_last")
    assert recipe("second", init_from=source, start_step=4, max_steps=10, log_every=1, eval_every=0) == 0
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["steps"] == 10 and record["earlier_runs"][0]["steps"] == 4
    logged = [json.loads(line)["step"] for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert min(logged) == 5


def test_the_record_of_a_running_training_says_how_far_its_checkpoints_are(tmp_path, recipe, monkeypatch):
    written = []
    real = Trainer.write_progress
    monkeypatch.setattr(Trainer, "write_progress", lambda self: (real(self), written.append(
        json.loads((self.output_dir / "run.json").read_text()))))  # fmt: skip
    assert recipe("run", max_steps=10, save_every=4) == 0
    assert [(record["status"], record["steps"]) for record in written] == [("running", 4), ("running", 8)]
    assert all(record["wall_seconds"] > 0 for record in written)


def test_a_run_writes_its_record_curve_and_a_model_that_loads_elsewhere(recipe, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert recipe("run", "--append-runs", str(tmp_path / "runs.jsonl")) == 0
    folder = tmp_path / "run"
    report = json.loads((folder / "run.json").read_text())
    assert report["status"] == "finished" and report["steps"] == 12 and report["config"]["batch_size"] == 8
    assert {"commit", "versions", "hardware", "wall_seconds", "puzzles_per_second", "tflops"} <= report.keys()
    assert min(report["tflops_of_large_matmul"], report["tflops"]) > 0
    shared = (tmp_path / "runs.jsonl").read_text()
    assert json.loads(shared)["name"] == "run" and str(tmp_path.parent) not in shared
    assert (folder / "curve.png").stat().st_size > 1000
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 6, 8, 10, 12, 12]
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"checkpoint_8", "checkpoint_12"}  # total_limit 2
    for name in ("model", "model_last"):
        assert {"config.json", "model.safetensors", "processor_config.json"} <= {
            p.name for p in (folder / name).iterdir()
        }
    model = AirModel.from_pretrained(folder / "model")
    assert torch.isfinite(model(torch.from_numpy(sudokus(2).inputs)).logits).all()


def test_a_second_run_into_the_same_folder_is_refused(recipe, tmp_path, capsys):
    assert recipe("run", max_steps=2) == 0
    assert recipe("run", max_steps=2) == 1
    assert "--resume" in capsys.readouterr().err
    assert recipe("run", "--overwrite", max_steps=2) == 0


def test_one_csv_without_evaluation_data_trains_and_says_so(recipe, tmp_path, data, capsys):
    assert recipe("run", max_steps=2, data=str(data / "train.csv")) == 0
    assert "eval_data" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_final_evaluation_on_all_puzzles_leaves_the_last_model_a_candidate_for_the_best(tmp_path):
    run = trainer(tmp_path, eval_limit=4, final_eval_limit=0)
    run.best = {"step": 6, "n": 4, "exact_accuracy": 0.0}
    run.step = 12
    assert run.evaluate(final=True)["n"] == 10
    assert (run.best["step"], run.best["n"]) == (12, 4) and (tmp_path / "model").is_dir()


def test_a_run_that_goes_on_from_a_model_counts_the_time_of_the_runs_before_it(tmp_path):
    for name, source, seconds in (("a", "", 5.0), ("b", "a", 7.0)):
        (tmp_path / name / "model").mkdir(parents=True)
        earlier = earlier_runs(str(tmp_path / source / "model") if source else "")
        run = {"name": name, "steps": 3, "wall_seconds": seconds, "earlier_runs": earlier}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
    run = {"wall_seconds": 1.0, "earlier_runs": earlier_runs(str(tmp_path / "b" / "model"))}
    assert [part["name"] for part in run["earlier_runs"]] == ["a", "b"] and all_seconds(run) == 13.0
    (tmp_path / "b" / "run.json").write_text('{"name": ')
    assert earlier_runs(str(tmp_path / "b" / "model")) == []  # half a record costs no run


def test_missing_data_is_one_sentence(recipe, capsys):
    assert recipe("run", data="no/such/folder/here") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "no/such/folder/here" in error


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_smoke_run_needs_neither_data_nor_network(tmp_path, name):
    arguments = ["--recipe", name, "--output-dir", str(tmp_path / "run"), "--smoke", "max_steps=2"]
    assert ta.main(arguments) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("path", sorted((RECIPES / "shipped").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_stage_of_a_shipped_recipe_has_a_miniature(tmp_path, path):
    stages = read_stages(path, {})
    small = [ta.smoke_recipe(stage.recipe, set(), tmp_path) for stage in stages]
    assert stages and {recipe.model["hidden_size"] for recipe in small} == {32}


def test_a_run_that_cannot_begin_says_why(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words, says in (
        (["--smoke", "task=foo", "--output-dir", str(tmp_path / "run")], "No miniature data for task=foo"),
        (["--smoke", "--output-dir", str(tmp_path / "file")], "file is a file, not a folder"),
        (["--smoke", "--output-dir", str(tmp_path / "file" / "run")], "file is a file, not a folder"),
    ):
        assert ta.main(["--recipe", "quickstart", *words]) == 1
        assert says in capsys.readouterr().err
        assert not (tmp_path / "run" / "run.json").exists()


def test_a_smoke_run_of_another_task_may_overwrite_one(tmp_path):
    for name in ("quickstart", "maze_small"):
        words = ["--recipe", name, "--output-dir", str(tmp_path), "--smoke", "--overwrite", "max_steps=1"]
        assert ta.main(words) == 0


# ---- several processes


def test_two_processes_give_the_weights_of_one_and_one_may_go_on_alone(recipe, tmp_path, capsys):
    assert recipe("one", q_continue=False) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    # What torchrun would start (the slow tests let it).
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    both = [own_process(ta.main, command(tmp_path, "two")[1:], **meet, **rank) for rank in ranks]
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    assert apart(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-3
    reports = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert [report["hardware"]["processes"] for report in reports] == [1, 2]
    for kind, name in (("train", "loss"), ("train", "steps"), ("eval", "n"), ("eval", "cell_accuracy")):
        one, two = (report["metrics"][kind][name] for report in reports)
        assert two == pytest.approx(one, rel=0.01), name  # of all processes, not of the first
    assert (tmp_path / "two" / "checkpoints" / "checkpoint_12" / "carry_1.safetensors").is_file()
    assert recipe("two", "--resume", max_steps=14, q_continue=False) == 0
    assert "carry is dropped" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_and_four_processes_give_the_weights_of_one_to_a_millionth(recipe, tmp_path):
    start = tiny_model(seed=1, q_continue=False)  # its blocks hardly multiply rounding; fresh ones do
    with torch.no_grad():
        start.q_head.weight.normal_(0.0, 1.0)  # some halt at once, some never
        start.q_head.bias.zero_()
    start.save_pretrained(tmp_path / "start")
    values = {"q_continue": False, "init_from": str(tmp_path / "start"), "lr": 1e-3, "eval_every": 0}
    assert recipe("one", **values) == 0
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["train/steps"] for line in lines if line.get("train/steps")]
    assert 1 < sum(steps) / len(steps) < TINY["halt_max_steps"]  # slots halted early, and were refilled
    final = Path("checkpoints", "checkpoint_12", "model.safetensors")
    one = load_file(tmp_path / "one" / final)
    for count in ("2", "4"):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", count, "--standalone"]
        done = subprocess.run([*launch, *command(tmp_path, count)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        several = load_file(tmp_path / count / final)
        assert max(float((one[name] - several[name]).abs().max()) for name in one) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name, machines", [("8_gpus", 1), ("2_nodes", 2)])
def test_a_launch_file_starts_two_processes_that_train_together_on_a_cpu(recipe, tmp_path, name, machines):
    assert recipe("whole", max_steps=2) == 0  # writes the recipe file
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free.getsockname()[1])]
    nodes = [
        subprocess.Popen([*launch, "--machine_rank", str(rank), *command(tmp_path, "run")], cwd=tmp_path)
        for rank in range(machines)
    ]
    assert [node.wait(timeout=600) for node in nodes] == [0] * machines
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (report["status"], report["hardware"]["processes"]) == ("finished", 2)


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"},
    ],
)
def test_a_process_that_should_have_company_refuses_to_train_alone(monkeypatch, environment):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    refuse_lonely_process(1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun"):
        refuse_lonely_process(1)


def test_a_launch_with_fsdp_trains_as_ddp_and_says_so(recipe, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert recipe("run", max_steps=1) == 0
    assert "FSDP was asked for" in capsys.readouterr().err


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Choose a divisor"):
        trainer(tmp_path, accumulation=3)


@pytest.mark.slow
def test_a_sigterm_to_torchrun_stops_both_processes_at_one_checkpoint(recipe, tmp_path):
    assert recipe("whole", max_steps=2) == 0  # writes the recipe file
    lines = (tmp_path / "tiny.yaml").read_text().replace("max_steps: 2", "max_steps: 100000")
    (tmp_path / "tiny.yaml").write_text(lines)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    process = subprocess.Popen([*launch, *command(tmp_path, "run")], cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint_8")
    process.terminate()
    process.wait(timeout=60)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["status"] == "stopped"
    newest = tmp_path / "run" / "checkpoints" / f"checkpoint_{report['steps']}"
    assert {"carry_0.safetensors", "carry_1.safetensors"} <= {path.name for path in newest.iterdir()}


@pytest.mark.slow
def test_a_sigterm_to_accelerate_launch_reaches_the_run(recipe, tmp_path):
    assert recipe("whole", max_steps=2) == 0  # writes the recipe file
    lines = (tmp_path / "tiny.yaml").read_text().replace("max_steps: 2", "max_steps: 100000")
    (tmp_path / "tiny.yaml").write_text(lines)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", *command(tmp_path, "run")]
    process = subprocess.Popen(launch, cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint_8")
    process.terminate()
    process.wait(timeout=60)
    end = time.monotonic() + 60
    while json.loads((tmp_path / "run" / "run.json").read_text())["status"] != "stopped":
        assert time.monotonic() < end
        time.sleep(0.2)


# ---- trackers


def test_tensorboard_gets_the_metrics_when_it_is_asked_for(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    assert recipe("run", max_steps=4, trackers="tensorboard", run_name="model") == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert not list((tmp_path / "run" / "model").rglob("events.out.tfevents*"))  # the run's own, replaced as it goes


def losses_in_tensorboard(run: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_tensorboard_shows_each_step_once_after_a_resume_and_nothing_of_an_overwritten_run(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    run, values = tmp_path / "run", {"trackers": "tensorboard", "run_name": "tb"}
    assert recipe("run", max_steps=8, **values) == 0
    shutil.rmtree(run / "checkpoints" / "checkpoint_8")  # as if it had been killed after logging step 8
    time.sleep(1.1)  # event files are read in the order of the seconds in their names
    assert recipe("run", "--resume", max_steps=8, **values) == 0
    assert losses_in_tensorboard(run) == [2, 4, 6, 8]
    assert recipe("run", "--overwrite", max_steps=4, **values) == 0
    assert losses_in_tensorboard(run) == [2, 4]


def test_every_session_of_a_run_has_the_same_id_at_wandb(tmp_path):
    first = lasting_id(tmp_path)
    assert first == lasting_id(tmp_path) and len(first) == 12


def test_puzzles_per_second_are_those_of_the_run_and_not_of_its_last_steps(recipe, tmp_path):
    # All slots halt together after 4 ACT steps: in most windows of two steps none does.
    assert recipe("run", max_steps=6, halt_exploration_prob=0.0, log_every=1, eval_every=0) == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["metrics"]["train"]["puzzles_per_second"] == 0 < report["puzzles_per_second"]


def test_an_unknown_tracker_is_refused(recipe, capsys):
    assert recipe("run", trackers="tensorbord") == 1
    assert "Known:" in capsys.readouterr().err


# ---- what is kept, counted and refused


def test_the_best_model_is_chosen_anew_when_other_puzzles_evaluate_it(recipe, tmp_path):
    assert recipe("a", max_minutes=1e-9) == 0
    state = tmp_path / "a/checkpoints/checkpoint_1/state.json"
    content = json.loads(state.read_text())
    content["best"] = {"step": 1, "n": 8, "exact_accuracy": 2.0}  # better than anything
    state.write_text(json.dumps(content))
    manifest = state.with_name("manifest.json")
    entry = {"bytes": state.stat().st_size, "sha256": _hash(state)}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state.json": entry}))
    assert recipe("a", "--resume", eval_limit=10) == 0
    assert json.loads((tmp_path / "a/run.json").read_text())["metrics"]["best"]["n"] == 10


def test_a_best_model_that_could_not_be_written_is_not_called_the_best(tmp_path, monkeypatch):
    run = trainer(tmp_path)

    def full(name):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "save_model", full)
    run.evaluate()
    assert run.best == {}


def test_two_runs_cannot_share_a_folder(recipe, tmp_path, capsys):
    with alone_in(tmp_path / "a"):
        assert recipe("a") == TAKEN
    assert "Another process is training into" in capsys.readouterr().err
    assert recipe("a", max_steps=1) == 0


def test_a_tracker_that_cannot_write_costs_the_tracker_and_not_the_run(tmp_path, capsys):
    class Full:
        def log(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    run = trainer(tmp_path)
    run.journal.trackers = [Full()]
    run.journal.record(0, {"a": 1.0})
    assert run.journal.trackers == [] and "Full could not write" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_one_sentence(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert recipe("file") == 1 and recipe("file/sub") == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_smoke_run_takes_the_epochs_and_dashed_keys_that_it_is_given(tmp_path):
    words = ["--recipe", "quickstart", "--smoke", "--output-dir", str(tmp_path / "a"), "epochs=1", "batch-size=8"]
    assert ta.main(words) == 0
    report = json.loads((tmp_path / "a/run.json").read_text())
    assert (report["config"]["epochs"], report["config"]["batch_size"]) == (1, 8)


# ---- stages and launchers


@contextlib.contextmanager
def killed_at(step: int, monkeypatch):
    """A training inside is killed before it makes that step."""
    train_step = Trainer.train_step

    def killed(self):
        if self.step == step:
            raise KeyboardInterrupt
        train_step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", killed)
        yield


def test_a_chain_that_is_killed_in_its_second_stage_resumes_to_the_same_mean_of_weights(recipe, tmp_path, monkeypatch):
    stages = [{"max_steps": 4}, {"max_steps": 12, "lr": 5e-3, "average": True}]
    values = {"stages": stages, "eval_every": 0}
    assert recipe("whole", **values) == 0
    with killed_at(6, monkeypatch):
        recipe("killed", **values)
    first = (tmp_path / "killed/stage_1/run.json").read_text()
    assert json.loads((tmp_path / "killed/run.json").read_text())["status"] == "running"
    assert recipe("killed", **values) == 1  # holds a run already
    assert recipe("killed", "--resume", **values) == 0
    assert (tmp_path / "killed/stage_1/run.json").read_text() == first  # not run again
    whole, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert same(whole, resumed)
    before, after = (load_file(tmp_path / f"whole/stage_{n}/model_last/model.safetensors") for n in (1, 2))
    assert all(torch.allclose(whole[key], (before[key] + after[key]) / 2) for key in whole)
    record = json.loads((tmp_path / "killed/run.json").read_text())
    assert record["status"] == "finished" and [part["steps"] for part in record["stages"]] == [4, 12]
    assert record["stages"][1]["average"]["n"] == 8


def test_a_chain_is_not_deleted_for_one_that_cannot_run(recipe, tmp_path, capsys):
    values = {"stages": [{"max_steps": 1}, {"max_steps": 1}], "eval_every": 0}
    assert recipe("run", **values) == 0
    assert recipe("run", "--overwrite", **values, data=str(tmp_path / "none")) == 1
    assert "There is no file or folder" in capsys.readouterr().err
    with alone_in(tmp_path / "run/stage_2"):
        assert recipe("run", "--overwrite", **values) == TAKEN
    assert all((tmp_path / "run" / name / "run.json").is_file() for name in ("stage_1", "stage_2", "."))


def test_a_stage_of_another_width_than_its_start_is_not_averaged(recipe, capsys):
    assert recipe("run", stages=[{"max_steps": 1}, {"hidden_size": 32, "average": True}]) == 1
    assert "Stage 2" in capsys.readouterr().err


@pytest.mark.parametrize("value", [{"level_token": "add"}, {"qk_norm": True}, {"shared_block": False}])
def test_a_stage_with_weights_that_its_start_lacks_is_not_averaged(recipe, tmp_path, capsys, value):
    assert recipe("run", stages=[{"max_steps": 1}, {"max_steps": 1, "average": True, **value}]) == 1
    assert "whose weights are of other shapes" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_record_of_a_chain_holds_the_scores_of_the_mean_that_it_leaves(recipe, tmp_path):
    stages = [{"max_steps": 2}, {"max_steps": 2, "average": True}]
    assert recipe("run", stages=stages, eval_every=0, lr=0.1) == 0
    record, last = (json.loads((tmp_path / "run" / at / "run.json").read_text()) for at in (".", "stage_2"))
    assert record["metrics"]["eval"] == record["metrics"]["best"] == last["average"] != last["metrics"]["eval"]


@pytest.mark.parametrize("second, message", [({"start": "nowhere"}, "nowhere"), ({"data": "nowhere"}, "nowhere"),
                                             ({"init_from": "somewhere"}, "Stage 2")])  # fmt: skip
def test_a_stage_that_cannot_run_is_refused_before_the_first_one(recipe, tmp_path, capsys, second, message):
    assert recipe("run", stages=[{"max_steps": 1}, {"max_steps": 1, **second}]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_stage_is_not_made_longer_after_the_next_one_began(recipe, tmp_path, capsys):
    values = {"stages": [{"max_steps": 2}, {"max_steps": 1}], "eval_every": 0}
    assert recipe("run", **values) == 0
    before = (tmp_path / "run/stage_1/run.json").read_text()
    values["stages"][0]["max_steps"] = 3
    assert recipe("run", "--resume", **values) == 1
    assert "stage_1 would go on" in capsys.readouterr().err
    assert (tmp_path / "run/stage_1/run.json").read_text() == before


def test_a_chain_whose_folder_was_moved_goes_on(recipe, tmp_path, monkeypatch):
    values = {"stages": [{"max_steps": 2}, {"max_steps": 6}], "eval_every": 0, "lr_min_ratio": 0.1}
    with killed_at(5, monkeypatch):
        recipe("here", **values)
    first = (tmp_path / "here/stage_1/run.json").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    assert recipe("there", "--resume", **values) == 0  # the half-done stage goes on
    assert (tmp_path / "there/stage_1/run.json").read_text() == first
    (tmp_path / "there").rename(tmp_path / "here")
    assert recipe("here", "--resume", **values) == 0  # nothing is left to do
    values["stages"][1]["start"] = "model"
    assert recipe("here", "--resume", **values) == 1  # another start is another run


def test_a_second_process_that_comes_late_joins_the_chain(recipe, tmp_path):
    stages = [{"max_steps": 1}, {"max_steps": 1, "average": True}]
    assert recipe("one", stages=stages, eval_every=0) == 0  # writes the recipe file
    meets, waits = torch.distributed.init_process_group, tmp_path / "the first one waits"

    def main(late: bool) -> int:
        if late:
            wait_for(waits)
        else:
            torch.distributed.init_process_group = lambda *a, **k: (waits.touch(), meets(*a, **k))[1]
        return ta.main(command(tmp_path, "two")[1:])

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    both = [own_process(main, rank["RANK"] == "1", **meet, **rank) for rank in ranks]
    for process in reversed(both):
        process.join(240)
        assert process.exitcode == 0
    assert json.loads((tmp_path / "two/run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("name", sorted(p.parent.name for p in (ROOT / "checkpoints").glob("*/run.json")))
def test_every_shipped_checkpoint_has_a_recipe_in_stages(name):
    from air_model.training.stages import read_stages

    twins = {"air-sudoku-9x9": "air-sudoku-9x9-twins", "air-maze-12x12": "air-maze-twins"}  # one recipe for both
    base, _, rule = name.rpartition("-")
    stages = read_stages(twins[base] if rule in ("Lx_H", "Lx_Hx") else name, {})
    run = json.loads((ROOT / "checkpoints" / name / "run.json").read_text())
    runs = run.get("stages") or [*run["earlier_runs"], run]
    assert len(stages) == len(runs) and stages[-1].recipe.train.max_steps == run["steps"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision=fp16"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "recipe says mixed_precision=no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "Add accumulation=4"),
    ],
)
def test_what_a_launcher_asks_for_is_refused_rather_than_ignored(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path)


@pytest.mark.parametrize(
    ("source", "name"), [("runs/seed3/model", "seed3"), ("runs/seed3/model_last/", "model_last"), ("user/air", "air")]
)
def test_a_model_that_training_left_is_called_after_its_run(source, name):
    assert model_name(source) == name


@pytest.mark.parametrize(
    ("script", "named"), [("benchmarks/search.py", "benchmarks/search.py"), ("/elsewhere/mine.py", "mine.py")]
)
def test_a_recorded_command_names_the_script_from_the_root_and_no_folder_of_this_machine(monkeypatch, script, named):
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), "--data", "/mine/dev.csv", "data=/mine/x", "seed=1"])
    assert command_line() == f"python {named} --data dev.csv data=x seed=1"
