"""Freeze studies: what moves when one state is held at its start?

    result = freeze_study(Study(model, inputs, labels))
    result.records()                      # per puzzle {"normal.z_H": {"updates", "mask_flips", ...}, ...}
    result.summary()                      # mean, std, sem over puzzles
    across_runs([summary, summary, ...])  # mean and std over checkpoints (seeds)

Counted between consecutive decodes of one state (96 decodes, 95 comparisons in the published runs): a mask flip is a
cell that enters or leaves the mask (Sudoku: decoded blank; maze: decoded path), a content change any other change of
token. Source: AIR (arXiv:2605.17811), freeze analysis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from air_model.analysis.common import Study, in_chunks, long_table, markdown_table, mean_std_sem, plus_minus
from air_model.analysis.interventions import Intervention, run_with
from air_model.processing_air import GridTask

STATES = {"h": "z_H", "l": "z_L"}


def mask_token(task: GridTask) -> int:
    """The token whose coming and going is a mask flip: blank, or the path of a maze."""
    return task.PATH if task.name == "maze" else task.blank_token


def count_changes(grids: torch.Tensor | np.ndarray, mask_token: int) -> tuple[Any, Any]:
    """Mask flips and content changes between consecutive decodes.

    Args:
        grids: (..., U, S) decoded tokens.

    Returns:
        Two integer arrays or tensors (..., U - 1).
    """
    before, after = grids[..., :-1, :], grids[..., 1:, :]
    flip = (before == mask_token) != (after == mask_token)
    change = (before != after) & ~flip
    return flip.sum(-1), change.sum(-1)


def exact(grids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: whole grids (N, S) that are right in every labelled cell (PAD does not count)."""
    return ((grids == labels) | (labels <= 0)).all(-1) & (labels > 0).any(-1)


@dataclass
class FreezeResult:
    """Counts per run, state, puzzle and comparison.

    flips, changes: {run: {"h" or "l": (N, U - 1)}}; exact: {run: {state: (N,)}} or None without labels. Runs:
    "normal", "freeze_z_H", "freeze_z_L", and the names of further interventions.
    """

    flips: dict[str, dict[str, np.ndarray]]
    changes: dict[str, dict[str, np.ndarray]]
    exact: dict[str, dict[str, np.ndarray]] | None
    updates: list[str]

    def __len__(self) -> int:
        return len(self.flips["normal"]["h"])

    def _keys(self) -> list[tuple[str, str, str]]:
        """(name in results, run, state): ("normal.z_H", "normal", "h") and so on."""
        return [(f"{run}.{name}", run, state) for run in self.flips for state, name in STATES.items()]

    def records(self) -> list[dict[str, dict[str, Any]]]:
        """Per puzzle and run.state: totals over the roll-out, as in the golden analysis.json."""

        def told(run: str, state: str, i: int) -> dict[str, Any]:
            return {
                "updates": len(self.updates),
                "mask_flips": int(self.flips[run][state][i].sum()),
                "content_changes": int(self.changes[run][state][i].sum()),
                "exact": None if self.exact is None else float(self.exact[run][state][i]),
            }

        return [{key: told(run, state, i) for key, run, state in self._keys()} for i in range(len(self))]

    def summary(self) -> dict[str, dict[str, Any]]:
        """{run.state: {measure: {"n", "mean", "std", "sem"}}}: totals per puzzle, means per comparison, accuracy."""
        out = {}
        for key, run, state in self._keys():
            flips, changes = self.flips[run][state], self.changes[run][state]
            compared = max(1, flips.shape[-1])
            measures = {
                "mask_flips": flips.sum(-1),
                "content_changes": changes.sum(-1),
                "mask_flips_per_update": flips.sum(-1) / compared,
                "content_changes_per_update": changes.sum(-1) / compared,
            }
            if self.exact is not None:
                measures["exact_accuracy"] = self.exact[run][state]
            stats = {measure: mean_std_sem(values) for measure, values in measures.items()}
            out[key] = {m: {k: v if k == "n" else float(v) for k, v in found.items()} for m, found in stats.items()}
        return out

    def series(self) -> dict[str, dict[str, Any]]:
        """{run.state: {"mask_flips", "content_changes": {"mean", "sem"} per comparison}}."""
        kinds = {"mask_flips": self.flips, "content_changes": self.changes}
        out = {}
        for key, run, state in self._keys():
            stats = {measure: mean_std_sem(values[run][state]) for measure, values in kinds.items()}
            out[key] = {measure: {k: found[k] for k in ("mean", "sem")} for measure, found in stats.items()}
        return out

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle, run, state and comparison, for parquet."""
        n, steps = self.flips["normal"]["h"].shape
        axes = {"run": list(self.flips), "state": list(STATES.values()), "puzzle": np.arange(n)}
        flips, changes = (np.array([list(by.values()) for by in of.values()]) for of in (self.flips, self.changes))
        return long_table({**axes, "update": np.arange(1, steps + 1)}, mask_flips=flips, content_changes=changes)


def freeze_study(study: Study, interventions: Sequence[Intervention] = ()) -> FreezeResult:
    """Normal run, z_H frozen, z_L frozen, and any further interventions, over the same puzzles."""
    runs: dict[str, Intervention | None] = {
        "normal": None,
        "freeze_z_H": Intervention("freeze", "z_h"),
        "freeze_z_L": Intervention("freeze", "z_l"),
        **{intervention.name: intervention for intervention in interventions},
    }
    token = mask_token(study.task)

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        out = {}
        own = None if part.labels is None else part.labels.numpy()
        for run, intervention in runs.items():
            rollout = run_with(part, intervention, first=first).rollout
            for state in STATES:
                grids = getattr(rollout, f"z_{state}")
                for kind, counts in zip(("flips", "changes"), count_changes(grids, token)):
                    out[f"{run}|{state}|{kind}"] = counts.cpu().numpy()
                if own is not None:
                    out[f"{run}|{state}|exact"] = exact(grids[:, -1].cpu().numpy(), own)
        return out

    names = {run: repr(intervention) for run, intervention in runs.items()}
    parts = list(in_chunks(study, "freeze", compute, runs=names))

    def collect(kind: str) -> dict[str, dict[str, np.ndarray]]:
        return {
            run: {s: np.concatenate([part[f"{run}|{s}|{kind}"] for part in parts]) for s in STATES} for run in runs
        }

    exacts = None if study.labels is None else collect("exact")
    return FreezeResult(collect("flips"), collect("changes"), exacts, study.updates)


def across_runs(summaries: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and std over checkpoints of their means: {run.state: {measure: {"n_runs", "mean", "std", "runs"}}}."""
    if not summaries:
        raise ValueError("There is no run to summarise.")
    out: dict[str, dict[str, Any]] = {}
    for key in summaries[0]:
        out[key] = {}
        for measure in summaries[0][key]:
            runs = [summary[key][measure]["mean"] for summary in summaries if key in summary]
            n, mean, std, _ = mean_std_sem(runs).values()
            out[key][measure] = {"n_runs": n, "mean": float(mean), "std": float(std), "runs": runs}
    return out


_PUBLISHED_MEASURES = {
    "Total mask flips": "mask_flips",
    "Total solution-mask flips": "mask_flips",
    "Total number changes": "content_changes",
    "Total color changes": "content_changes",
    "Mean flips per step": "mask_flips_per_update",
    "Mean number changes per step": "content_changes_per_update",
    "Mean color changes per step": "content_changes_per_update",
    "Exact accuracy": "exact_accuracy",
}


def from_published(file: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    """The published five-seed table (`freeze_5runs.json`) in the shape of `across_runs`."""
    out: dict[str, dict[str, Any]] = {}
    # Frozen z_H is a study of z_L (the state that still moves), and the other way round.
    for frozen, moving in (("zH", "z_L"), ("zL", "z_H")):
        for title, row in file[f"{task}_freeze_{frozen}"]["metrics"].items():
            what, _, run = title.partition(": ")
            if what not in _PUBLISHED_MEASURES:
                continue
            run = "normal" if run == "normal" else f"freeze_z_{frozen[1]}"
            out.setdefault(f"{run}.{moving}", {})[_PUBLISHED_MEASURES[what]] = {
                "n_runs": row["n_runs"],
                "mean": row["mean_across_runs"],
                "std": row["std_across_runs"],
                "runs": list(row["per_run_means"].values()),
            }
    return out


# Five seeds of the default variant, 1,000 test puzzles each: (mean, std) of content changes per puzzle and of exact
# accuracy. Source: the public repository's README (means) and its freeze results (spread).
_PUBLISHED = {
    "sudoku": {
        "normal.z_L": ((1235, 271), (0.108, 0.241)),
        "freeze_z_H.z_L": ((323, 178), (0.002, None)),
        "normal.z_H": ((275, 28), (0.551, 0.019)),
        "freeze_z_L.z_H": ((551, 615), (0.0, None)),
    },
    "maze": {
        "normal.z_L": ((1289, 529), (0.0, None)),
        "freeze_z_H.z_L": ((2305, 734), (0.0, None)),
        "normal.z_H": ((825, 146), (0.710, 0.065)),
        "freeze_z_L.z_H": ((2880, 1951), (0.0, None)),
    },
}


def published(task: GridTask) -> dict[str, dict[str, Any]] | None:
    """The paper's freeze table for its two tasks and sizes, in the shape of `across_runs`; None for other grids."""
    if task.name not in _PUBLISHED or (task.height, task.width) != {"sudoku": (9, 9), "maze": (30, 30)}[task.name]:
        return None
    return {
        key: {
            measure: {"n_runs": 5, "mean": mean, "std": std, "runs": []}
            for measure, (mean, std) in zip(("content_changes", "exact_accuracy"), numbers)
        }
        for key, numbers in _PUBLISHED[task.name].items()
    }


def freeze_table(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]] | None = None) -> str:
    """Markdown: mask flips, content changes and exact accuracy per run and state; the published numbers beside ours.

    Args:
        ours: of `across_runs` (± std over checkpoints) or `FreezeResult.summary` (± std over puzzles).
    """
    header = ["run", "state", "mask flips", "content changes", "exact accuracy, %"]
    header += ["published content changes", "published exact accuracy, %"] if theirs else []

    def cell(source: dict[str, Any], measure: str, scale: float = 1, digits: int = 1) -> str:
        entry = source.get(measure)
        if entry is None or entry["mean"] is None:
            return ""
        if entry["std"] is None:
            return f"{scale * entry['mean']:,.{digits}f}"
        return plus_minus(scale * entry["mean"], scale * entry["std"], digits)

    rows = []
    for key, measures in ours.items():
        run, _, state = key.rpartition(".")
        row = [run.replace("freeze_", "frozen "), state]
        row += [cell(measures, "mask_flips"), cell(measures, "content_changes"), cell(measures, "exact_accuracy", 100)]
        if theirs:
            their = theirs.get(key, {})
            row += [cell(their, "content_changes", digits=0), cell(their, "exact_accuracy", 100)]
        rows.append(row)
    return markdown_table(header, rows)
