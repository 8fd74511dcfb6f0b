"""scripts/push_to_hub.py against a Hub on loopback (localhub.py), through the real upload client."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import ROOT, tiny_config, tiny_model
from huggingface_hub import ModelCard
from localhub import OTHER, READER, WRITER, Fault, LocalHub
from safetensors.torch import save_file

from air_model.analysis.leaderboard import Evaluation
from air_model.configuration_air import TRAVELLING_FILES, AirConfig
from air_model.pipeline_air import save_release
from air_model.processing_air import task_from_config
from air_model.publishing import upload
from air_model.scripts import push_to_hub

EVALUATION = {
    "n": 1175,
    "exact_accuracy": 0.25,
    "exact_accuracy_ci95": [0.226, 0.276],
    "valid_accuracy": 0.5,
    "cell_accuracy": 0.75,
    "mean_act_steps": 3.25,
    "by_rating": [{"rating": "0", "n": 10, "exact_accuracy": 0.9}, {"rating": "50+", "n": 5, "exact_accuracy": 0.2}],
    "settings": {
        "data": "sapientinc/sudoku-extreme",
        "split": "test",
        "halt": "max",
        "attempts": 1,
        "max_act_steps": 16,
        "seed": 7,
        "model": "/home/somebody/runs/x/model",
    },
}
RUN = {
    "status": "finished",
    "seed": 3,
    "steps": 120,
    "wall_seconds": 7200.0,
    "hardware": {"device": "NVIDIA H200", "processes": 2},
    "data": {"train": {"source": "sapientinc/sudoku-extreme", "n": 1000, "fingerprint": "abc"}, "eval": None},
    "config": {
        "data": "sapientinc/sudoku-extreme",
        "batch_size": 64,
        "optimizer": "adam_atan2",
        "lr": 1e-4,
        "output_dir": "/home/somebody/runs/x",
    },
}


@pytest.fixture
def model_folder(tmp_path):
    """A saved tiny model in a run folder, without measurements."""
    folder = tmp_path / "run" / "model"
    save_release(tiny_model(), folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A loopback Hub that the upload client of this process talks to."""
    constants = huggingface_hub.constants
    with LocalHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(upload.time, "sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield running
    huggingface_hub.close_session()


def push(*arguments) -> int:
    return push_to_hub.main([str(argument) for argument in arguments])


def push_model(folder: Path, *arguments, repo_id: str = "user/air") -> int:
    return push("model", "--model", folder, "--repo-id", repo_id, "--no-figures", *arguments)


def refusal(capsys) -> str:
    """The one sentence on standard error; progress bars overwrite themselves."""
    error = capsys.readouterr().err
    (sentence,) = re.findall(r"push_to_hub: (.*)", error)
    assert "Traceback" not in error
    return sentence


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_dry_run_writes_exactly_the_files_that_a_push_sends(hub, model_folder, tmp_path):
    assert push_model(model_folder, "--dry-run", tmp_path / "dry") == 0
    assert not hub.requests
    assert push_model(model_folder) == 0
    sent = hub.repo("model", "user/air").files()
    del sent[".gitattributes"]  # the Hub's own
    assert sent == files_below(tmp_path / "dry")
    others = {"LICENSE", "README.md", "config.json", "model.safetensors", "processor_config.json"}
    assert set(sent) == others | set(TRAVELLING_FILES)


def test_a_dry_run_needs_neither_token_nor_network_and_never_overwrites_foreign_files(
    model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert push_model(model_folder, "--dry-run", tmp_path / "dry") == 0
    assert push_model(model_folder, "--dry-run", tmp_path / "dry") == 0
    assert push_model(model_folder, "--dry-run", tmp_path / "mine") == 1
    assert "diary.txt" in capsys.readouterr().err


def test_pushing_twice_sends_nothing_twice_and_a_tag_is_never_moved(hub, model_folder, capsys):
    assert push_model(model_folder, "--tag", "v0.1.0") == 0
    repo = hub.repo("model", "user/air")
    assert repo.tags["v0.1.0"] == repo.branches["main"]
    assert 'revision="v0.1.0"' in capsys.readouterr().out
    commits = len(repo.commits)
    assert push_model(model_folder) == 0 and push_model(model_folder, "--tag", "v0.1.0") == 0
    assert len(repo.commits) == commits
    save_release(tiny_model(seed=1), model_folder)
    assert push_model(model_folder, "--tag", "v0.1.0") == 1
    assert "never moved" in capsys.readouterr().err
    assert len(repo.commits) == commits


def test_a_private_repository_and_a_branch_are_made_where_missing(hub, model_folder):
    assert push_model(model_folder, "--private", "--revision", "next") == 0
    repo = hub.repo("model", "user/air")
    assert repo.private
    assert "model.safetensors" in repo.files("next") and "model.safetensors" not in repo.files("main")


def test_private_never_means_a_repository_that_is_public_already(hub, model_folder, capsys):
    assert push_model(model_folder) == 0
    save_release(tiny_model(seed=1), model_folder)
    capsys.readouterr()
    assert push_model(model_folder, "--private") == 1
    assert "is public" in refusal(capsys)


def test_a_pull_request_changes_nothing_until_it_is_merged(hub, model_folder, monkeypatch, capsys):
    assert push_model(model_folder) == 0
    save_release(tiny_model(seed=1), model_folder)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    assert push_model(model_folder, "--create-pr") == 0
    repo = hub.repo("model", "user/air")
    assert f"{hub.url}/user/air/discussions/1" in capsys.readouterr().out
    new = (model_folder / "model.safetensors").read_bytes()
    assert repo.files("refs/pr/1")["model.safetensors"] == new != repo.files("main")["model.safetensors"]
    assert push_model(model_folder, "--create-pr", "--tag", "v1") == 1


def test_sharded_weights_arrive_whole_and_replace_earlier_shards(hub, tmp_path):
    folder = tmp_path / "model"
    save_release(tiny_model(), folder)
    assert push_model(folder) == 0
    sharded = tmp_path / "sharded"
    tiny_model().save_pretrained(sharded, max_shard_size="4KB")
    shards = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert len(shards) > 2
    assert push_model(sharded) == 0
    sent = hub.repo("model", "user/air").files()
    assert sorted(name for name in sent if name.endswith(".safetensors")) == shards


def test_an_upload_broken_in_the_middle_goes_on_where_it_stopped(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upload, "TRIES", 1)
    sharded = tmp_path / "sharded"
    tiny_model().save_pretrained(sharded, max_shard_size="4KB")
    monkeypatch.setattr("huggingface_hub.lfs.http_backoff", once)
    hub.faults.append(Fault("PUT /lfs/", "drop", times=99))
    assert push_model(sharded) == 1
    assert "repeat the command" in refusal(capsys)
    assert (
        ".gitattributes" in hub.repo("model", "user/air").files() and len(hub.repo("model", "user/air").commits) == 1
    )
    hub.faults.clear()
    # Half of them arrive, then the connection breaks again.
    half = len(list(sharded.glob("*.safetensors"))) // 2
    hub.faults += [Fault("PUT /lfs/", 200, times=0), Fault("commit/main", "drop", times=1)]
    assert push_model(sharded) == 1
    arrived = hub.count("PUT /lfs/")
    assert arrived >= half
    assert push_model(sharded) == 0
    assert hub.count("PUT /lfs/") == arrived  # nothing was uploaded again


def once(method, url, **arguments):
    """The client's upload call without its own waiting and repeating."""
    for name in ("max_retries", "base_wait_time", "max_wait_time", "retry_on_exceptions", "retry_on_status_codes"):
        arguments.pop(name, None)
    return huggingface_hub.utils.get_session().request(method, url, **arguments)


@pytest.mark.slow
def test_a_process_killed_during_an_upload_leaves_no_half_repository(hub, model_folder, tmp_path):
    held = Fault("POST .*/commit/main", "hold")
    hub.faults.append(held)
    command = [sys.executable, ROOT / "scripts/push_to_hub.py", "model", "--model", model_folder]
    command += ["--repo-id", "user/air", "--no-figures"]
    process = subprocess.Popen(command, env=hub.environment(tmp_path / "home"), stdout=subprocess.DEVNULL)
    assert held.seen.wait(120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held.release.set()
    assert list(hub.repo("model", "user/air").files()) == [".gitattributes"]
    assert push_model(model_folder) == 0
    assert "model.safetensors" in hub.repo("model", "user/air").files()


def test_two_writers_at_once_do_not_overwrite_each_other_unseen(hub, model_folder, capsys):
    assert push_model(model_folder) == 0
    save_release(tiny_model(seed=1), model_folder)
    hub.faults.append(Fault("commit/main", 412))
    assert push_model(model_folder) == 0
    assert "Somebody else committed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("token", "arguments", "fault", "says"),
    [
        ("wrong", [], None, "does not accept the token"),
        (READER, [], None, "may not write"),
        (WRITER, ["--create-pr"], None, "There is no model user/air"),
        (OTHER, ["--repo-id", "user/air"], None, "may not write"),
        (WRITER, [], Fault("repos/create", 429, times=99, headers={"Retry-After": "1"}), "asked for a pause"),
        (WRITER, [], Fault("commit/main", 429, times=99, headers={"Retry-After": "1"}), "asked for a pause"),
        (WRITER, [], Fault("commit/main", 412, times=99), "keeps committing"),
        (WRITER, [], Fault("commit/main", 500, times=99), "problem of its own"),
        (WRITER, [], Fault("repos/create", "drop", times=99), "could not be reached"),
        (None, [], None, "HF_TOKEN is not set"),
    ],
)
def test_every_refusal_of_the_hub_is_one_sentence(
    hub, model_folder, monkeypatch, capsys, token, arguments, fault, says
):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.faults += [fault] if fault else []
    assert push_model(model_folder, *arguments) == 1
    assert says in refusal(capsys)
    if ("model", "user/air") in hub.repos:
        assert list(hub.repo("model", "user/air").files()) == [".gitattributes"]


def test_a_rate_limit_that_ends_only_costs_time(hub, model_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.faults.append(Fault("commit/main", 429, times=2, headers={"Retry-After": "0"}))
    assert push_model(model_folder) == 0


def test_without_the_network_the_sentence_says_so(model_folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push_model(model_folder) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_a_token_on_the_command_line_is_refused(model_folder, capsys):
    with pytest.raises(SystemExit):
        push_model(model_folder, "--token", "x")
    assert "HF_TOKEN only" in capsys.readouterr().err


# ---- what must not be published -------------------------------------------------------------------------------------

TOKEN = "hf_" + "aB3" * 12  # looks like one, and is none


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("optimizer.bin", b"anything", "optimizer.bin is a pickle"),
        ("state.pt", b"", "state.pt is a pickle"),
        ("notes.txt", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.", "notes.txt is a pickle"),
        ("notes.txt", f"my token is {TOKEN}".encode(), "notes.txt, line 1: looks like a Hugging Face token"),
        ("notes.txt", f"my token is {TOKEN}".encode("utf-16"), "notes.txt, line 1: looks like a Hugging Face token"),
        ("notes.txt", f"my token is {TOKEN}".encode("utf-32"), "notes.txt, line 1: looks like a Hugging Face token"),
        ("a__pycache__.md", TOKEN.encode(), "a__pycache__.md, line 1: looks like a Hugging Face token"),
        (".env", b"A=1\nWANDB_API_KEY=0123456789abcdef0123456789abcdef01234567", ".env, line 2: looks like"),
        ("key.pem", b"-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("tokenizer_config.json", b'{"path": "/home/somebody/x"}', "'/home/somebody/x' is a path of this machine"),
        ("tokenizer_config.json", b'{"path": "C:\\\\Users\\\\me\\\\x"}', "is a path of this machine"),
    ],
)
def test_pickles_secrets_and_machine_paths_are_refused(hub, model_folder, capsys, name, contents, says):
    (model_folder / name).write_bytes(contents)
    assert push_model(model_folder) == 1
    assert says in capsys.readouterr().err
    assert not hub.repos


def test_the_token_in_use_is_found_in_any_file(hub, model_folder, monkeypatch, capsys):
    (model_folder / "notes.txt").write_text(f"remember: {WRITER}")
    assert push_model(model_folder) == 1
    assert "$HF_TOKEN" in capsys.readouterr().err


def test_what_does_not_belong_stays_behind_and_is_named(hub, model_folder, capsys):
    (model_folder / "notes.txt").write_text("harmless")
    assert push_model(model_folder) == 0
    assert "notes.txt" not in hub.repo("model", "user/air").files()
    assert "Left behind: notes.txt" in capsys.readouterr().out


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif how == "another model":
        tiny_config(hidden_size=32).save_pretrained(folder)
    elif how in ("NaN", "incomplete"):
        state = tiny_model().state_dict()
        state["lm_head.weight"][0, 0] = torch.nan
        if how == "incomplete":
            del state["lm_head.weight"]
        save_file(state, weights)
    elif how == "missing":
        weights.unlink()
    elif how == "not AIR":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "no JSON":
        (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "cannot be read as safetensors"),
        ("another model", "belong to different models"),
        ("NaN", "holds NaN"),
        ("incomplete", "lack lm_head.weight"),
        ("missing", "no model.safetensors"),
        ("not AIR", "not an AIR model"),
        ("no JSON", "no readable JSON"),
    ],
)
def test_a_damaged_model_folder_is_refused_in_one_sentence(model_folder, tmp_path, capsys, how, says):
    damage(model_folder, how)
    assert push_model(model_folder, "--dry-run", tmp_path / "dry") == 1
    assert says in refusal(capsys)
    assert not (tmp_path / "dry").exists()


# ---- cards ----------------------------------------------------------------------------------------------------------


def test_the_card_quotes_the_evaluation_files_and_nothing_else(model_folder, tmp_path):
    (model_folder.parent / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "dev.json").write_text(json.dumps(EVALUATION))
    assert push_model(model_folder, "--evaluation", tmp_path / "dev.json", "--dry-run", tmp_path / "dry") == 0
    card = ModelCard((tmp_path / "dry/README.md").read_text())
    values = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in values.items()} == {
        "exact_accuracy": 0.25,
        "valid_accuracy": 0.5,
        "cell_accuracy": 0.75,
    }
    exact = values["exact_accuracy"]
    assert (exact.dataset_type, exact.dataset_split) == ("sapientinc/sudoku-extreme", "test")
    facts = exact.metric_args
    assert (facts["n"], facts["training_seed"], facts["max_act_steps"], facts["halt"]) == (1175, 3, 16, "max")
    assert card.data.datasets == ["sapientinc/sudoku-extreme"]
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "puzzle-solving"
    for text in ("1,175", "25.00 % (22.60–27.60)", "Trained on 1,000 puzzles", "Weakest at ratings 50+: 20.00 %"):
        assert text in card.text
    assert "4.00 GPU hours (2 × NVIDIA H200)" in card.text and "at most 2.80 kWh" in card.text
    files = files_below(tmp_path / "dry")
    assert not any(b"/home/somebody" in contents for contents in files.values())
    assert json.loads(files["results/dev.json"])["settings"]["model"] == "model"


def test_a_card_without_measurements_says_so(model_folder, tmp_path):
    assert push_model(model_folder, "--dry-run", tmp_path / "dry") == 0
    card = ModelCard((tmp_path / "dry/README.md").read_text())
    assert "**Nothing was measured**" in card.text
    assert card.data.eval_results is None and card.data.datasets is None


def test_an_evaluation_file_without_a_measurement_is_refused(model_folder, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"n": 0, "exact_accuracy": 0.0}')
    (tmp_path / "other.json").write_text('{"loss": 1.0}')
    for name in ("bad.json", "other.json", "missing.json"):
        assert push_model(model_folder, "--evaluation", tmp_path / name, "--dry-run", tmp_path / "dry") == 1
        assert name in capsys.readouterr().err


def test_the_evaluation_of_another_model_is_refused(model_folder, tmp_path, capsys):
    other = {**EVALUATION, "settings": {**EVALUATION["settings"], "parameters": 5}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert push_model(model_folder, "--evaluation", tmp_path / "other.json", "--dry-run", tmp_path / "dry") == 1
    assert "measured a model of 5 parameters" in refusal(capsys)


def test_the_card_shows_a_roll_out_of_this_very_checkpoint(model_folder, tmp_path):
    dry = tmp_path / "dry"
    assert push("model", "--model", model_folder, "--repo-id", "user/air", "--dry-run", dry) == 0
    assert (dry / "figures/rollout.png").read_bytes().startswith(b"\x89PNG")
    assert "(figures/rollout.png)" in (dry / "README.md").read_text()


# ---- data sets, the Space, collections ------------------------------------------------------------------------------


@pytest.fixture
def data_folder(tmp_path):
    """A folder as build_dataset.py writes it: two configs as parquet files, and a card that names them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "data"
    for config in ("1k", "tiny"):
        for split in ("train", "test"):
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"question": ["1..." * 4], "answer": ["1234" * 4], "config": [config]}), path)
    configs = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n  - split: test\n"
        f"    path: {c}/test-*\n"
        for c in ("1k", "tiny")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\nload_dataset('FOLDER_OR_HUB_ID')\n")
    return folder


def test_a_data_set_is_published_with_its_configs(hub, data_folder, capsys):
    assert push("dataset", "--data", data_folder, "--repo-id", "user/puzzles") == 0
    sent = hub.repo("dataset", "user/puzzles").files()
    assert {"README.md", "1k/train-00000-of-00001.parquet", "tiny/test-00000-of-00001.parquet"} <= set(sent)
    assert b"load_dataset('user/puzzles')" in sent["README.md"]
    output = capsys.readouterr().out
    assert f"{hub.url}/datasets/user/puzzles" in output and 'load_dataset("user/puzzles", "1k")' in output


def test_a_folder_without_a_data_card_is_refused(data_folder, tmp_path, capsys):
    (data_folder / "README.md").unlink()
    assert push("dataset", "--data", data_folder, "--repo-id", "user/p", "--dry-run", tmp_path / "dry") == 1
    assert "no README.md" in capsys.readouterr().err


def test_the_space_carries_the_package_that_its_app_imports(hub, model_folder, tmp_path):
    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("import air_model\n")
    (space / "README.md").write_text("---\ntitle: AIR\nsdk: gradio\n---\n# AIR\n")
    (space / "requirements.txt").write_text("torch\n")
    assert push("space", "--space", space, "--repo-id", "user/demo", "--model", "user/air") == 0
    repo = hub.repo("space", "user/demo")
    assert {"app.py", "README.md", "requirements.txt", "air_model/__init__.py"} <= set(repo.files())
    assert repo.variables == {"AIR_MODEL": "user/air"}
    assert b"- user/air" in repo.files()["README.md"]
    dry = tmp_path / "dry"
    command = ["space", "--space", space, "--repo-id", "user/demo", "--model", model_folder, "--dry-run", dry]
    assert push(*command) == 0
    assert (dry / "air_model/checkpoints/run/model.safetensors").is_file()


@pytest.mark.slow
def test_the_published_space_starts_from_its_own_files(model_folder, tmp_path):
    dry = tmp_path / "dry"
    assert push("space", "--repo-id", "user/demo", "--model", model_folder, "--dry-run", dry) == 0
    code = "import sys; sys.path.insert(0, sys.argv[1]); import air_model, app; print(air_model.__file__); "
    code += "found = app.find_checkpoints(); app.build(app.Engine(found)); print([one.key for one in found])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(dry)], cwd=dry, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == [str(dry / "air_model/__init__.py"), "['run']"]


def test_this_projects_space_folder_can_be_published(tmp_path):
    command = ["space", "--repo-id", "user/demo", "--model", "user/air", "--dry-run"]
    assert push(*command, tmp_path / "first") == 0
    assert push(*command, tmp_path / "dry", "--space", tmp_path / "first") == 0  # a copy that somebody changed
    (tmp_path / "new").mkdir()
    assert (tmp_path / "dry").stat().st_mode == (tmp_path / "new").stat().st_mode
    files = files_below(tmp_path / "dry")
    assert {"app.py", "README.md", "requirements.txt", "air_model/pipeline_air.py"} <= set(files)
    assert not any(name.endswith(".pyc") for name in files)


def test_a_collection_is_completed_not_duplicated(hub, tmp_path, capsys):
    command = ["collection", "--repo-id", "user/AIR", "--item", "model:user/air=solves Sudokus"]
    assert push(*command, "--dry-run", tmp_path / "dry") == 0
    assert json.loads((tmp_path / "dry/collection.json").read_text())["items"][0]["id"] == "user/air"
    assert push(*command) == 0 and push(*command, "--item", "space:user/demo") == 0
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == ["user/air", "user/demo"]
    assert push("collection", "--repo-id", "user/AIR", "--item", "air") == 1
    assert "must be model:USER/NAME" in capsys.readouterr().err


def test_help_shows_copy_paste_examples(capsys):
    for arguments in (["--help"], ["model", "--help"]):
        with pytest.raises(SystemExit):
            push(*arguments)
        assert "python scripts/push_to_hub.py model --model" in capsys.readouterr().out


assert os.environ.get("HF_HUB_OFFLINE") == "1"  # nothing here may reach the real Hub by accident


def test_a_card_names_earlier_runs_other_sizes_and_valid_failures_of_mazes():
    from air_model.publishing.card import limits_text, training_text

    run = {"steps": 10, "config": {"augment": "none"}, "earlier_runs": [{"name": "first", "steps": 1500}]}
    assert "`first` (1,500 steps); 1,510 steps in all" in training_text(run)
    run["config"]["start_step"] = 4
    assert "1,506 steps in all" in training_text(run)
    config = AirConfig(task="maze", grid_height=12, vocab_size=6, position_embedding="rope2d", prefix_length=1)
    found = {"x": Evaluation({"n": 10, "exact_accuracy": 0.5, "valid_accuracy": 0.9}, 16)}
    text = limits_text(config, found, None)
    assert "Fails on 10.00 %" in text and "of other sizes" in text
    assert "of other sizes" not in limits_text(AirConfig(task="sudoku", grid_height=9), {}, None)


def test_the_card_of_a_generic_grid_shows_a_puzzle_that_it_reads_and_names_no_rules():
    from air_model.publishing.card import example_text, limits_text

    config = AirConfig(task="grid", grid_height=2, grid_width=3, vocab_size=5)
    assert task_from_config(config).encode(example_text(config)).tolist() == [1] * 6
    assert "Only labels tell, not the confidence." in limits_text(config, {}, None)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"l_injection": 0.5, "h_injection": 1.5}, "L-updates get the encoded puzzle times 0.5, H-updates times 1.5"),
        ({"input_operator": "negate"}, "L-updates get minus the encoded puzzle times 1, H-updates times 0"),
        ({"level_token": "add"}, "times 0; a learned token, added to every position, tells them apart"),
    ],
)
def test_a_card_says_what_the_two_updates_get(fields, text):
    from air_model.publishing.card import injection_text

    assert text in injection_text(AirConfig(**fields))


def test_a_card_names_no_weakest_rating_where_nothing_failed():
    from air_model.publishing.card import limits_text

    ratings = [{"rating": rating, "n": 5, "exact_accuracy": 1.0} for rating in ("0", "1-9")]
    found = {"x": Evaluation({"n": 10, "exact_accuracy": 1.0, "by_rating": ratings}, 16)}
    assert "Weakest" not in limits_text(AirConfig(task="sudoku", grid_height=9), found, None)


def test_a_card_claims_no_symmetric_copies_of_a_generic_grid():
    from air_model.publishing.card import training_text

    assert "Augmentation: none" in training_text({"task": "grid", "config": {"augment": "symmetries"}})


def test_the_card_of_a_generic_grid_claims_no_boxes():
    from air_model.publishing.card import model_card

    config = AirConfig(task="grid", grid_height=2, vocab_size=4, cell_embedding=True, num_hidden_layers=1)
    card = model_card(config, {"parameters": 1, "float32": 1}, None, {}, [], "user/air", [])
    assert "row/column embeddings" in card and "of 1 layer, width" in card
