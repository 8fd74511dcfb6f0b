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

from air_model.analysis.common import Study, in_chunks, mean_std_sem
from air_model.analysis.freeze import STATES
from air_model.analysis.interventions import Intervention, run_with
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
        out: dict[str, dict[str, dict[str, Any]]] = {}
        for state, name in STATES.items():
            out[name] = {}
            for measure, values in self.values[state].items():
                stats = mean_std_sem(values)
                out[name][measure] = {key: stats[key] for key in ("n", "mean", "sem")}
        return out

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle, update and state, for parquet."""
        n, updates = self.values["h"]["blank"].shape
        columns: dict[str, Any] = {
            "state": np.repeat(list(STATES.values()), n * updates),
            "puzzle": np.tile(np.repeat(np.arange(n), updates), 2),
            "update": np.tile(np.arange(updates), 2 * n),
            "act_step": np.tile(np.arange(updates) // self.per_step, 2 * n),
            "updated": np.tile(np.array(self.updates), 2 * n),
        }
        for measure in self.values["h"]:
            columns[measure] = np.concatenate([self.values[state][measure].reshape(-1) for state in STATES])
        return columns


class _Meter:
    """A hook that measures both states after every update."""

    def __init__(self, part: Study):
        self.part = part
        self.per_step = len(part.config.schedule)
        self.labels = None if part.labels is None else part.labels.to(part.device)
        shape = (len(part), len(part.updates))
        names = MEASURES if part.labels is not None else MEASURES[2:]
        self.values = {s: {name: torch.zeros(shape, device=part.device) for name in names} for s in STATES}
        self.before: dict[str, Tensor] = {}

    def __call__(self, update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        at = int(update.steps[0]) * self.per_step + update.index  # all puzzles of a batch are at one step
        for state, z in (("h", z_h), ("l", z_l)):
            logits = self.part.model.decode_state(z)
            top = logits.float().topk(2, dim=-1).values
            tokens = logits.argmax(-1)
            before = tokens if at == 0 else self.before[state]  # at update 0 nothing comes before
            values = {
                "blank": (tokens == self.part.task.blank_token).float().mean(-1),
                "pad": (tokens == PAD).float().mean(-1),
                "margin": (top[..., 0] - top[..., 1]).mean(-1),
                "changed": (tokens != before).float().mean(-1),
            }
            self.before[state] = tokens
            if self.labels is not None:
                labels = self.labels[update.rows]
                right, counted = (tokens == labels) & (labels > 0), labels > 0
                values["accuracy"] = right.float().sum(-1) / counted.sum(-1).clamp_min(1)
                values["exact"] = (right | ~counted).all(-1).float()
            for name, value in values.items():
                self.values[state][name][update.rows, at] = value


def rollout_study(study: Study, keep: int = 4, intervention: Intervention | None = None) -> RolloutResult:
    """Measure the roll-outs of all puzzles and keep the decodes of the first `keep`."""

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        meter = _Meter(part)
        rollout = run_with(part, intervention, first=first, hook=meter).rollout
        out = {}
        for state in STATES:
            for name, values in meter.values[state].items():
                out[f"{state}|{name}"] = values.cpu().numpy()
            kept = getattr(rollout, f"z_{state}")[: max(0, keep - first)]
            out[f"{state}|tokens"] = kept.cpu().numpy()
        return out

    parts = list(in_chunks(study, "rollout", compute, keep=keep, intervention=repr(intervention)))
    names = [key.partition("|")[2] for key in parts[0] if key.startswith("h|") and key != "h|tokens"]
    values = {s: {name: np.concatenate([part[f"{s}|{name}"] for part in parts]) for name in names} for s in STATES}
    tokens = {s: np.concatenate([part[f"{s}|tokens"] for part in parts]) for s in STATES}
    return RolloutResult(values, tokens, study.updates, len(study.config.schedule))
