"""A stranger's process: loads models from the Hub of HF_ENDPOINT without air_model, prints facts as JSON.

python load_model.py REFERENCE.safetensors {online,offline}
"""
# ruff: noqa: E402

import json
import sys

sys.modules["air_model"] = None  # a stranger has not installed it

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor, logging, pipeline

logging.set_verbosity_error()
REFERENCE = load_file(sys.argv[1])
PUZZLE = "1..." + "." * 12


def logits(revision: str | None = "v1", repo: str = "user/air", **options):
    model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True, **options)
    with torch.no_grad():
        return model, model(REFERENCE["input_ids"]).logits.float()


def distance(other, name: str = "v1") -> float:
    return float((other - REFERENCE[name]).abs().max())


facts = {}
model, found = logits(code_revision="v1")
facts["tag"] = distance(found)
facts["class"] = type(model).__module__ + "." + type(model).__name__
facts["main"] = distance(logits(revision=None)[1], "main")
if sys.argv[2] == "online":
    sha = facts["class"].split(".")[-3]
    facts["sha"] = distance(logits(revision=sha, code_revision=sha)[1])
    facts["pull request"] = distance(logits(revision="refs/pr/1")[1], "main")
    facts["sharded"] = distance(logits(revision=None, repo="user/sharded")[1])
    model, found = logits(dtype=torch.bfloat16)
    facts["bfloat16"] = [str(model.dtype), distance(found)]
    model, found = logits(device_map="auto")
    facts["device_map"] = [str(model.device.type), distance(found)]
    for name in ("eager", "sdpa"):
        model, found = logits(attn_implementation=name)
        facts[name] = [model.config._attn_implementation, distance(found)]
    processor = AutoProcessor.from_pretrained("user/air", revision="v1", trust_remote_code=True)
    facts["processor"] = [type(processor).__name__, processor.decode(processor(PUZZLE)["input_ids"])]
    config = AutoConfig.from_pretrained("user/air", trust_remote_code=True)
    facts["code_version"] = config.code_version
    for name, arguments in {
        "missing repository": {"repo": "user/nothing", "revision": None},
        "missing revision": {"revision": "v9"},
        "private": {"repo": "user/secret", "revision": None, "token": "test-other"},
    }.items():
        try:
            logits(**arguments)
        except OSError as error:
            facts[name] = str(error)
# Every download of the offline run was made by the online run.
pipe = pipeline("puzzle-solving", model="user/air", revision="v1", trust_remote_code=True)
facts["pipeline"] = sorted(pipe(PUZZLE, max_act_steps=1))
print(json.dumps(facts))
