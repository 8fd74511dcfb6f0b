"""Decoded roll-outs: both states after every update, how right, how sure and how full they are.

    result = rollout_study(Study(model, inputs, labels), keep=4)
    result.curves()["z_L"]["accuracy"]["mean"]     # (U,), with "sem": over puzzles
    result.tokens["h"]                             # (keep, U, S): the first puzzles' decodes, for pictures

Measures per update and state: accuracy (cells right), exact (whole grid right), blank and pad (share of cells decoded
so), margin (best minus second logit, mean over cells), changed (cells that differ from the decode before).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from air_model.analysis.common import Study, in_chunks, long_table, mean_std_sem
from air_model.analysis.freeze import STATES
from air_model.analysis.interventions import run_with
from air_model.processing_air import PAD
from air_model.solving_air import AirUpdate

MEASURES = ("accuracy", "exact", "blank", "pad", "margin", "changed")


@dataclass
class RolloutResult:
    """values: {"h" or "l": {measure: (N, U)}} (accuracy and exact only with labels); tokens: {state: (keep, U, S)}."""

    values: dict[str, dict[str, np.ndarray]]
    tokens: dict[str, np.ndarray]
    updates: list[str]
    per_step: int

    def __len__(self) -> int:
        return len(self.values["h"]["blank"])

    @property
    def rollout(self) -> SimpleNamespace:
        """What the drawing functions take."""
        return SimpleNamespace(z_h=self.tokens["h"], z_l=self.tokens["l"], updates=self.updates)

    def curves(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{"z_H": {measure: {"n", "mean" (U,), "sem" (U,)}}}."""
        stats = {name: {m: mean_std_sem(v) for m, v in self.values[state].items()} for state, name in STATES.items()}
        return {name: {m: {key: found[key] for key in ("n", "mean", "sem")} for m, found in by.items()}
                for name, by in stats.items()}  # fmt: skip

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle, update and state, for parquet."""
        n, updates = self.values["h"]["blank"].shape
        at = long_table({"state": list(STATES.values()), "puzzle": np.arange(n), "update": np.arange(updates)})
        at |= {"act_step": at["update"] // self.per_step, "updated": np.array(self.updates)[at["update"]]}
        both = {m: np.stack([self.values[state][m] for state in STATES]) for m in self.values["h"]}
        return at | {measure: values.reshape(-1) for measure, values in both.items()}


def measures(grids: np.ndarray, labels: np.ndarray | None, blank: int) -> dict[str, np.ndarray]:
    """All measures but the margin: decodes (N, U, S) -> (N, U) float32 each."""
    before = np.concatenate([grids[:, :1], grids[:, :-1]], 1)  # at update 0 nothing comes before
    shares = {"blank": grids == blank, "pad": grids == PAD, "changed": grids != before}
    out = {name: cells.mean(-1, dtype=np.float32) for name, cells in shares.items()}
    if labels is not None:
        counted = (labels > 0)[:, None]
        right = (grids == labels[:, None]) & counted
        out["accuracy"] = right.sum(-1, dtype=np.float32) / np.maximum(counted.sum(-1), 1).astype(np.float32)
        out["exact"] = (right | ~counted).all(-1).astype(np.float32)
    return out


def rollout_study(study: Study, keep: int = 4) -> RolloutResult:
    """Measure the roll-outs of all puzzles and keep the decodes of the first `keep`."""

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        per_step, shape = len(part.config.schedule), (len(part), len(part.updates))
        margins = {state: torch.zeros(shape, device=part.device) for state in STATES}

        def measure(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
            at = int(update.steps[0]) * per_step + update.index  # all puzzles of a batch are at one step
            for state, z in (("h", z_h), ("l", z_l)):
                top = part.model.decode_state(z).float().topk(2, dim=-1).values
                margins[state][update.rows, at] = (top[..., 0] - top[..., 1]).mean(-1)

        rollout, out = run_with(part, hook=measure).rollout, {}
        labels = None if part.labels is None else part.labels.numpy()
        for state in STATES:
            grids = getattr(rollout, f"z_{state}").cpu().numpy()
            values = {**measures(grids, labels, part.task.blank_token), "margin": margins[state].cpu().numpy()}
            out |= {f"{state}|{name}": values[name] for name in MEASURES if name in values}
            out[f"{state}|tokens"] = grids[: max(0, keep - first)]
        return out

    parts = list(in_chunks(study, "rollout", compute, keep=keep))
    names = [name for name in MEASURES if f"h|{name}" in parts[0]]
    merged = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    values = {s: {name: merged[f"{s}|{name}"] for name in names} for s in STATES}
    tokens = {s: merged[f"{s}|tokens"] for s in STATES}
    return RolloutResult(values, tokens, study.updates, len(study.config.schedule))
