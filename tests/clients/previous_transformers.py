"""A process with another transformers in front of the path: the package's own classes, then a folder as a stranger.

python previous_transformers.py OVERLAY CHECKOUT REFERENCE.safetensors FOLDER NEW_FOLDER
"""
# ruff: noqa: E402

import json
import sys

overlay, checkout, reference, folder, new_folder = sys.argv[1:]
sys.path[:0] = [overlay, checkout + "/scripts"]

import torch
import transformers
from safetensors.torch import load_file

assert transformers.__file__.startswith(overlay), transformers.__file__
REFERENCE = load_file(reference)
PUZZLE = "1..." + "." * 12


def distance(model) -> float:
    with torch.no_grad():
        return float((model(REFERENCE["input_ids"]).logits - REFERENCE["v1"]).abs().max())


from transformers import AutoModel, AutoProcessor, pipeline

facts = {"version": transformers.__version__}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
facts["stranger"] = [type(model).__module__.split(".")[0], distance(model)]
facts["processor"] = AutoProcessor.from_pretrained(folder, trust_remote_code=True)(PUZZLE)["input_ids"].shape[1]
facts["pipeline"] = sorted(pipeline("puzzle-solving", model=folder, trust_remote_code=True)(PUZZLE, max_act_steps=1))

import _checkout  # noqa: F401

import air_model

facts["package"] = distance(air_model.AirModel.from_pretrained(folder))
torch.manual_seed(0)
model = air_model.AirModel(air_model.AirConfig.from_pretrained(folder))
inputs = REFERENCE["input_ids"]
out = model.train()(inputs, labels=inputs)
out.loss.backward()
facts["trains"] = bool(torch.isfinite(out.loss)) and model.lm_head.weight.grad is not None
air_model.save_release(air_model.AirModel.from_pretrained(folder), new_folder)
facts["saved"] = distance(air_model.AirModel.from_pretrained(new_folder))
facts["steps"] = model.solve(inputs, return_rollout=True).act_steps.tolist()
print(json.dumps(facts))
