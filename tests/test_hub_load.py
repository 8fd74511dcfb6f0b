"""What strangers do with a published repository, with the real clients in processes of their own (localhub.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_batch, tiny_model
from localhub import LocalHub
from safetensors.torch import save_file

from air_model.configuration_air import TRAVELLING_FILES, __version__
from air_model.pipeline_air import save_release

CLIENTS = Path(__file__).parent / "clients"


def client(hub: LocalHub, home: Path, script: str, *arguments: object, **environment: str) -> str:
    """Standard output of a client process, which shares nothing with this one."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-I", CLIENTS / script, *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        env=hub.environment(home, **environment),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def put(hub: LocalHub, folder: Path, name: str = "air", kind: str = "model") -> None:
    """Publish a folder as the upload client would, without its cost."""
    from localhub import LFS_SUFFIXES, Blob, Repo

    repo = hub.repos.setdefault((kind, f"user/{name}"), Repo(kind, f"user/{name}", "user", False))
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    repo.commit("main", {n: Blob(p.read_bytes(), n.endswith(LFS_SUFFIXES)) for n, p in files.items()}, [], "files")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hub with user/air (tag v1, then other weights on main and refs/pr/1), and what it should compute."""
    root = tmp_path_factory.mktemp("published")
    inputs, _ = tiny_batch()
    reference = {"input_ids": inputs}
    with LocalHub() as hub:
        for name, seed in (("v1", 0), ("main", 1)):
            model = tiny_model(seed=seed)
            save_release(model, root / name)
            put(hub, root / name)
            with torch.no_grad():
                reference[name] = model(inputs).logits
            if name == "v1":
                repo = hub.repo("model", "user/air")
                repo.tags["v1"] = repo.branches["main"]
        repo.branches["refs/pr/1"] = repo.branches["main"]
        model = tiny_model()
        save_release(model, root / "sharded")
        (root / "sharded/model.safetensors").unlink()
        model.save_pretrained(root / "sharded", max_shard_size="4KB")
        put(hub, root / "sharded", "sharded")
        put(hub, root / "v1", "secret")
        hub.repo("model", "user/secret").private = True
        save_file(reference, root / "reference.safetensors")
        hub.root = root
        yield hub


@pytest.fixture(scope="module")
def facts(published):
    home = published.root / "home"
    return json.loads(client(published, home, "load_model.py", published.root / "reference.safetensors", "online"))


@pytest.mark.parametrize("how", ["tag", "main", "sha", "pull request", "sharded"])
def test_every_revision_loads_its_own_weights(facts, how):
    assert facts[how] < 1e-4


def test_the_class_is_the_repositorys_own_code(facts):
    assert facts["class"].startswith("transformers_modules.user.air.")
    assert facts["class"].endswith(".modeling_air.AirModel")
    assert facts["code_version"] == __version__


def test_dtype_device_map_and_attention_are_honoured(facts):
    assert facts["bfloat16"][0] == "torch.bfloat16" and facts["bfloat16"][1] < 0.5
    assert facts["device_map"][0] == "cpu" and facts["device_map"][1] < 1e-4
    for name in ("eager", "sdpa"):
        assert facts[name][0] == name and facts[name][1] < 1e-4


def test_processor_and_pipeline_come_along(facts):
    assert facts["processor"] == ["AirProcessor", ["1..............."]]
    assert {"solution", "valid", "confidence", "act_steps"} <= set(facts["pipeline"])


def test_what_is_not_there_is_named(facts):
    assert "user/nothing" in facts["missing repository"]
    assert "v9" in facts["missing revision"]
    assert "user/secret" in facts["private"]


def test_after_one_download_everything_works_offline(published, facts):
    before = len(published.requests)
    reference, home = published.root / "reference.safetensors", published.root / "home"
    offline = json.loads(client(published, home, "load_model.py", reference, "offline", HF_HUB_OFFLINE="1"))
    assert max(offline["tag"], offline["main"]) < 1e-4 and offline["pipeline"] == facts["pipeline"]
    assert len(published.requests) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["user/nothing"], {}, "user/nothing"),
        (["user/air"], {"HF_TOKEN": "wrong"}, "user/air"),
        (["user/unseen"], {"HF_HUB_OFFLINE": "1"}, "user/unseen"),
    ],
)
def test_scripts_end_in_one_sentence_where_the_hub_has_no_answer(published, tmp_path, arguments, environment, says):
    command = [sys.executable, ROOT / "scripts/solve.py", "--model", *arguments, "1..............."]
    done = subprocess.run(
        [str(part) for part in command],
        env=published.environment(tmp_path, **environment),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert says in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_plain_push_into_a_new_repository_keeps_processor_pipeline_and_code(published, tmp_path):
    put(published, published.root / "v1", "air")
    assert "solution" in client(published, tmp_path / "home", "push_again.py")
    files = published.repo("model", "user/tuned").files()
    assert "custom_pipelines" in json.loads(files["config.json"])
    assert {"model.safetensors", "processor_config.json", *TRAVELLING_FILES} <= set(files)


@pytest.mark.slow
def test_data_sets_load_stream_and_push(published, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "data"
    for config, n in (("1k", 5), ("tiny", 2)):
        for split in ("train", "test"):
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = {"question": [f"{i}{split}" for i in range(n)], "answer": ["a"] * n}
            pq.write_table(pa.table(rows), path)
    listed = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n  - split: test\n"
        f"    path: {c}/test-*\n"
        for c in ("1k", "tiny")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n# Puzzles\n")
    put(published, folder, "puzzles", "dataset")
    repo = published.repo("dataset", "user/puzzles")
    repo.tags["v1"] = repo.branches["main"]
    facts = json.loads(client(published, tmp_path / "home", "use_dataset.py").splitlines()[-1])
    assert facts["configs"] == ["1k", "tiny"]
    assert facts["rows"] == {"train": 5, "test": 5} and facts["tag"] == 2
    assert facts["streamed"] == "0train"
    assert "user/nothing" in facts["missing"][1]
    assert facts["pushed"] == [8] * 16
