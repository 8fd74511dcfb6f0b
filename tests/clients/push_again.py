"""A user's process: loads a published model, pushes it plainly into a new repository, and uses its pipeline."""
# ruff: noqa: E402

import sys

sys.modules["air_model"] = None

from transformers import AutoModel, pipeline

model = AutoModel.from_pretrained("user/air", trust_remote_code=True)
model.lm_head.weight.data += 1
model.push_to_hub("user/tuned", commit_message="fine-tuned")
pipe = pipeline("puzzle-solving", model="user/tuned", trust_remote_code=True)
print(sorted(pipe("1..." + "." * 12, max_act_steps=1)))
