"""A stranger's process: publishes and loads data sets on the Hub of HF_ENDPOINT, prints facts as JSON."""

import json

import datasets
from datasets import Dataset, DatasetDict, List, Value, get_dataset_config_names, load_dataset

datasets.disable_progress_bars()
facts = {"configs": get_dataset_config_names("user/puzzles")}
facts["rows"] = {split: len(rows) for split, rows in load_dataset("user/puzzles", "1k").items()}
facts["tag"] = len(load_dataset("user/puzzles", "tiny", split="test", revision="v1"))
facts["streamed"] = next(iter(load_dataset("user/puzzles", "1k", split="train", streaming=True)))["question"]
try:
    load_dataset("user/nothing")
except Exception as error:
    facts["missing"] = [type(error).__name__, str(error)]
features = datasets.Features({"inputs": List(Value("uint8"), length=16)})
pushed = DatasetDict(
    {s: Dataset.from_dict({"inputs": [[i] * 16 for i in range(9)]}, features) for s in ("train", "test")}
)
pushed.push_to_hub("user/pushed", config_name="small", max_shard_size="1MB")
facts["pushed"] = load_dataset("user/pushed", "small", split="test")["inputs"][8]
print(json.dumps(facts))
