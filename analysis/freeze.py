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

from air_model.analysis.common import Study, in_chunks, mean_std_sem
from air_model.analysis.interventions import Freeze, Intervention, run_with
from air_model.processing_air import GridTask

STATES = {"h": "z_H", "l": "z_L"}


def mask_token(task: GridTask) -> int:
    """The token whose coming and going is a mask flip: blank, or the path of a maze."""
    return task.PATH if task.name == "maze" else task.blank_token


def count_changes(grids: np.ndarray, mask_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask flips and content changes between consecutive decodes.

    Args:
        grids: (..., U, S) decoded tokens.

    Returns:
        Two int64 arrays (..., U - 1).
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

    def records(self) -> list[dict[str, dict[str, Any]]]:
        """Per puzzle and run.state: totals over the roll-out, as in the golden analysis.json."""
        totals = {run: {s: (f.sum(-1), self.changes[run][s].sum(-1)) for s, f in by.items()} for run, by in
                  self.flips.items()}  # fmt: skip
        return [
            {
                f"{run}.{name}": {
                    "updates": len(self.updates),
                    "mask_flips": int(totals[run][state][0][i]),
                    "content_changes": int(totals[run][state][1][i]),
                    "exact": None if self.exact is None else float(self.exact[run][state][i]),
                }
                for run in self.flips
                for state, name in STATES.items()
            }
            for i in range(len(self))
        ]

    def summary(self) -> dict[str, dict[str, Any]]:
        """{run.state: {measure: {"n", "mean", "std", "sem"}}}: totals per puzzle, means per comparison, accuracy."""
        out = {}
        for run in self.flips:
            for state, name in STATES.items():
                flips, changes = self.flips[run][state], self.changes[run][state]
                measures = {
                    "mask_flips": flips.sum(-1),
                    "content_changes": changes.sum(-1),
                    "mask_flips_per_update": flips.mean(-1) if flips.shape[-1] else flips.sum(-1),
                    "content_changes_per_update": changes.mean(-1) if changes.shape[-1] else changes.sum(-1),
                }
                if self.exact is not None:
                    measures["exact_accuracy"] = self.exact[run][state]
                out[f"{run}.{name}"] = {
                    key: {k: float(v) if k != "n" else v for k, v in mean_std_sem(values).items()}
                    for key, values in measures.items()
                }
        return out

    def series(self) -> dict[str, dict[str, Any]]:
        """{run.state: {"mask_flips", "content_changes": {"mean", "sem"} per comparison}}."""
        out = {}
        for run in self.flips:
            for state, name in STATES.items():
                out[f"{run}.{name}"] = {
                    key: {k: v for k, v in mean_std_sem(values[run][state]).items() if k in ("mean", "sem")}
                    for key, values in (("mask_flips", self.flips), ("content_changes", self.changes))
                }
        return out

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle, run, state and comparison, for parquet."""
        out: dict[str, list[Any]] = {
            k: [] for k in ("run", "state", "puzzle", "update", "mask_flips", "content_changes")
        }
        n, steps = self.flips["normal"]["h"].shape
        for run in self.flips:
            for state, name in STATES.items():
                out["run"].append(np.full(n * steps, run))
                out["state"].append(np.full(n * steps, name))
                out["puzzle"].append(np.repeat(np.arange(n), steps))
                out["update"].append(np.tile(np.arange(1, steps + 1), n))
                out["mask_flips"].append(self.flips[run][state].reshape(-1))
                out["content_changes"].append(self.changes[run][state].reshape(-1))
        return {k: np.concatenate(v) for k, v in out.items()}


def freeze_study(study: Study, interventions: Sequence[Intervention] = ()) -> FreezeResult:
    """Normal run, z_H frozen, z_L frozen, and any further interventions, over the same puzzles."""
    runs: dict[str, Intervention | None] = {
        "normal": None,
        "freeze_z_H": Freeze("z_h"),
        "freeze_z_L": Freeze("z_l"),
        **{intervention.name: intervention for intervention in interventions},
    }
    labels = None if study.labels is None else study.labels.numpy()
    token = mask_token(study.task)

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        out = {}
        own = None if part.labels is None else part.labels.numpy()
        for run, intervention in runs.items():
            rollout = run_with(part, intervention, first=first).rollout
            for state in STATES:
                grids = getattr(rollout, f"z_{state}")
                flips, changes = _count_on_device(grids, token)
                out[f"{run}|{state}|flips"], out[f"{run}|{state}|changes"] = flips, changes
                if own is not None:
                    out[f"{run}|{state}|exact"] = exact(grids[:, -1].cpu().numpy(), own)
        return out

    names = {run: repr(intervention) for run, intervention in runs.items()}
    parts = list(in_chunks(study, "freeze", compute, runs=names))

    def collect(kind: str) -> dict[str, dict[str, np.ndarray]]:
        return {
            run: {s: np.concatenate([part[f"{run}|{s}|{kind}"] for part in parts]) for s in STATES} for run in runs
        }

    return FreezeResult(
        collect("flips"), collect("changes"), None if labels is None else collect("exact"), study.updates
    )


def _count_on_device(grids: torch.Tensor, token: int) -> tuple[np.ndarray, np.ndarray]:
    before, after = grids[:, :-1], grids[:, 1:]
    flip = (before == token) != (after == token)
    change = (before != after) & ~flip
    return flip.sum(-1).cpu().numpy(), change.sum(-1).cpu().numpy()


def across_runs(summaries: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and std over checkpoints of their means: {run.state: {measure: {"n_runs", "mean", "std", "runs"}}}."""
    if not summaries:
        raise ValueError("There is no run to summarise.")
    out: dict[str, dict[str, Any]] = {}
    for key in summaries[0]:
        out[key] = {}
        for measure in summaries[0][key]:
            runs = [summary[key][measure]["mean"] for summary in summaries if key in summary]
            stats = mean_std_sem(runs)
            out[key][measure] = {"n_runs": stats["n"], "mean": float(stats["mean"]), "std": float(stats["std"])}
            out[key][measure]["runs"] = runs
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
            "content_changes": {"n_runs": 5, "mean": changes[0], "std": changes[1], "runs": []},
            "exact_accuracy": {"n_runs": 5, "mean": accuracy[0], "std": accuracy[1], "runs": []},
        }
        for key, (changes, accuracy) in _PUBLISHED[task.name].items()
    }


def freeze_table(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]] | None = None) -> str:
    """Markdown: mask flips, content changes and exact accuracy per run and state; the published numbers beside ours.

    Args:
        ours: of `across_runs` (± std over checkpoints) or `FreezeResult.summary` (± std over puzzles).
    """
    from air_model.analysis.common import markdown_table, plus_minus

    header = ["run", "state", "mask flips", "content changes", "exact accuracy, %"]
    header += ["published content changes", "published exact accuracy, %"] if theirs else []
    rows = []
    for key, measures in ours.items():
        run, _, state = key.rpartition(".")

        def cell(source: dict[str, Any] | None, measure: str, scale: float = 1, digits: int = 1) -> str:
            entry = (source or {}).get(measure)
            if entry is None or entry["mean"] is None:
                return ""
            spread = entry["std"]
            if spread is None:
                return f"{scale * entry['mean']:,.{digits}f}"
            return plus_minus(scale * entry["mean"], scale * spread, digits)

        row = [
            run.replace("freeze_", "frozen "),
            state,
            cell(measures, "mask_flips"),
            cell(measures, "content_changes"),
        ]
        row.append(cell(measures, "exact_accuracy", 100))
        if theirs:
            row += [cell(theirs.get(key), "content_changes", digits=0), cell(theirs.get(key), "exact_accuracy", 100)]
        rows.append(row)
    return markdown_table(header, rows)
