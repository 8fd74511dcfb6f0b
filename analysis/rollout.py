"""Decoded roll-outs: both states after every update, how right, how sure and how full they are.

    result = rollout_study(Study(model, inputs, labels), keep=4)
    result.curves()["z_L"]["accuracy"]["mean"]     # (U,), with "sem": over puzzles
    result.tokens["h"]                             # (keep, U, S): the first puzzles' decodes, for pictures

Measures per update and state: accuracy (cells right), exact (whole grid right), blank and pad (share of cells decoded
so), margin (best minus second logit, mean over cells), changed (cells that differ from the decode before).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from air_model.analysis.common import Filled, Study, long_table, mean_std_sem, over_puzzles, right_grids
from air_model.analysis.freeze import STATES
from air_model.analysis.interventions import run_with
from air_model.processing_air import PAD
from air_model.solving_air import AirUpdate


@dataclass
class RolloutResult:
    """values: {"h" or "l": {measure: (N, U)}}; tokens: {state: (keep, U, S)}."""

    values: dict[str, dict[str, np.ndarray]]
    tokens: dict[str, np.ndarray]
    updates: list[str]
    per_step: int

    def __len__(self) -> int:
        return len(self.values["h"]["blank"])

    def curves(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{"z_H": {measure: {"n", "mean" (U,), "sem" (U,)}}}."""
        return {
            name: {m: mean_std_sem(values, ("n", "mean", "sem")) for m, values in self.values[state].items()}
            for state, name in STATES.items()
        }

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle, update and state, for parquet."""
        axes = {"state": list(STATES.values()), "puzzle": range(len(self)), "update": range(len(self.updates))}
        at = long_table(axes)
        at |= {"act_step": at["update"] // self.per_step, "updated": np.array(self.updates)[at["update"]]}
        return at | {m: np.stack([self.values[s][m] for s in STATES]).reshape(-1) for m in self.values["h"]}


def measures(grids: np.ndarray, margin: np.ndarray, labels: np.ndarray, blank: int) -> dict[str, np.ndarray]:
    """All measures of decodes (N, U, S) with their margin (N, U): (N, U) float32 each."""
    before = np.concatenate([grids[:, :1], grids[:, :-1]], 1)  # at update 0 nothing comes before
    counted = (labels > 0)[:, None]
    right = (grids == labels[:, None]) & counted
    out = {"accuracy": right.sum(-1, dtype=np.float32) / np.maximum(counted.sum(-1), 1).astype(np.float32)}
    out["exact"] = right_grids(grids, labels[:, None]).astype(np.float32)
    share = partial(np.mean, axis=-1, dtype=np.float32)
    out |= {"blank": share(grids == blank), "pad": share(grids == PAD), "margin": margin}
    return out | {"changed": share(grids != before)}


def rollout_study(study: Study, keep: int = 4) -> RolloutResult:
    """Measure the roll-outs of all puzzles and keep the decodes of the first `keep`."""
    per_step = len(study.config.schedule)

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        margins = Filled(len(part), len(part.updates))

        def measure(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
            at = int(update.steps[0]) * per_step + update.index  # all puzzles of a batch are at one step
            for state, z in (("h", z_h), ("l", z_l)):
                top = part.model.decode_state(z).float().topk(2, dim=-1).values
                margins.put(state, (top[..., 0] - top[..., 1]).mean(-1), update.rows, at)

        rollout, out = run_with(part, hook=measure).rollout, {}
        for state in STATES:
            grids = getattr(rollout, f"z_{state}").cpu().numpy()
            found = measures(grids, margins.arrays()[state], part.labels.numpy(), part.task.blank_token)
            out |= {f"values|{state}|{name}": values for name, values in found.items()}
            out[f"tokens|{state}"] = grids[: max(0, keep - first)]
        return out

    found = over_puzzles(study, "rollout", compute, keep=keep)
    return RolloutResult(**found, updates=study.updates, per_step=per_step)
