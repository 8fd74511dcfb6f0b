"""Built data sets as others load them from a Hub (localhub.py), in a process of their own."""

import json

import pytest
from conftest import ROOT
from localhub import LocalHub
from test_data import build, sudoku_rows, write_csv
from test_hub_load import client, put

READER = """
import json, sys
from datasets import load_dataset
from air_model.datasets_builders import load_puzzles
from air_model.datasets_builders import build as module

folder, short, out = sys.argv[1:4]
ours = load_puzzles(folder, "train")
whole = load_dataset("user/puzzles", split="train")
stream = list(load_dataset("user/puzzles", split="train", streaming=True))
hub = load_puzzles("user/puzzles", "train", revision=short)
plain = load_puzzles("user/plain", "train")
module.HUB["sudoku-extreme"] = ("user/csv", short_csv := sys.argv[4])
config = module.BuildConfig(dataset="sudoku-extreme", source="hub", num_train=3, progress=False)
meta = module.build(config, out)
print(json.dumps({
    "whole": whole["inputs"][:] == ours.inputs.tolist(),
    "stream": [row["labels"] for row in stream] == ours.labels.tolist(),
    "hub": (hub.inputs == ours.inputs).all().item() and hub.task == ours.task,
    "plain": (plain.inputs == ours.inputs).all().item() and plain.task == ours.task,
    "built": meta["configs"]["3"]["splits"]["train"]["rows"], "source": meta["source"],
}))
"""


@pytest.mark.slow
def test_a_built_data_set_reads_the_same_from_a_hub_by_every_way(tmp_path):
    source = write_csv(tmp_path / "train.csv", sudoku_rows(8))
    assert build("sudoku-extreme", "--source", source, "--output-dir", tmp_path / "built") == 0
    (tmp_path / "plain").mkdir()  # what DatasetDict.push_to_hub leaves: parquet files only
    for file in (tmp_path / "built").rglob("*.parquet"):
        (tmp_path / "plain" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "csv").mkdir()
    write_csv(tmp_path / "csv" / "train.csv", sudoku_rows(8), ("q", "a", "rating", "source"))
    (tmp_path / "reader.py").write_text(READER)
    with LocalHub() as hub:
        for folder, name in (("built", "puzzles"), ("plain", "plain"), ("csv", "csv")):
            put(hub, tmp_path / folder, name, "dataset")
        commits = {n: list(hub.repo("dataset", f"user/{n}").commits) for n in ("puzzles", "csv")}
        short = [commits[n][-1][:8] for n in ("puzzles", "csv")]
        said = client(hub, tmp_path / "home", tmp_path / "reader.py", tmp_path / "built", short[0], tmp_path / "out",
                      short[1], PYTHONPATH=str(ROOT))  # fmt: skip
    answer = json.loads(said.splitlines()[-1])
    assert all(answer[way] for way in ("whole", "stream", "hub", "plain")) and answer["built"] == 3
    assert answer["source"] == f"user/csv@{short[1]}"
