"""Freeze studies: what moves when one state is held at its start?

    result = freeze_study(Study(model, inputs, labels))
    result.records()                      # per puzzle {"normal.z_H": {"updates", "mask_flips", ...}, ...}
    result.summary()                      # mean, std, sem over puzzles
    across_runs([summary, summary, ...])  # mean and std over checkpoints (seeds)

Counted between consecutive decodes of one state (96 decodes, 95 comparisons in the published runs): a mask flip is a
cell that enters or leaves the mask (Sudoku: decoded blank; maze: decoded path; a generic grid has none), a content
change any other change of token. Source: AIR (arXiv:2605.17811), freeze analysis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from air_model.analysis.common import (
    Study,
    long_table,
    markdown_table,
    mean_std_sem,
    over_puzzles,
    plus_minus,
    right_grids,
)
from air_model.analysis.interventions import Intervention, run_with
from air_model.processing_air import GridTask, MazeTask, SudokuTask

STATES = {"h": "z_H", "l": "z_L"}


def count_changes(grids: torch.Tensor | np.ndarray, mask_token: int) -> tuple[Any, Any]:
    """Mask flips and content changes between consecutive decodes (..., U, S): two integer arrays (..., U - 1)."""
    before, after = grids[..., :-1, :], grids[..., 1:, :]
    flip = (before == mask_token) != (after == mask_token)
    change = (before != after) & ~flip
    return flip.sum(-1), change.sum(-1)


@dataclass
class FreezeResult:
    """Counts per run, state, puzzle and comparison.

    flips, changes: {run: {"h" or "l": (N, U - 1)}}; exact: {run: {state: (N,)}}. Runs:
    "normal", "freeze_z_H", "freeze_z_L", and the names of further interventions.
    """

    flips: dict[str, dict[str, np.ndarray]]
    changes: dict[str, dict[str, np.ndarray]]
    exact: dict[str, dict[str, np.ndarray]]
    updates: list[str]

    def __len__(self) -> int:
        return len(self.flips["normal"]["h"])

    def _counts(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """(run.state as results name it, flips, changes, exact) of every run and state."""
        for run, by in self.flips.items():
            for state, name in STATES.items():
                yield f"{run}.{name}", by[state], self.changes[run][state], self.exact[run][state]

    def records(self) -> list[dict[str, dict[str, Any]]]:
        """Per puzzle and run.state: totals over the roll-out, as in the golden analysis.json."""
        out: list[dict[str, dict[str, Any]]] = [{} for _ in range(len(self))]
        for key, flips, changes, exact in self._counts():
            for i, record in enumerate(out):
                record[key] = {
                    "updates": len(self.updates),
                    "mask_flips": int(flips[i].sum()),
                    "content_changes": int(changes[i].sum()),
                    "exact": float(exact[i]),
                }
        return out

    def summary(self) -> dict[str, dict[str, Any]]:
        """{run.state: {measure: {"n", "mean", "std", "sem"}}}: totals per puzzle, means per comparison, accuracy."""
        out = {}
        for key, flips, changes, exact in self._counts():
            totals = {"mask_flips": flips.sum(-1), "content_changes": changes.sum(-1)}
            totals |= {f"{name}_per_update": total / max(1, flips.shape[-1]) for name, total in totals.items()}
            totals["exact_accuracy"] = exact
            out[key] = {name: mean_std_sem(values) for name, values in totals.items()}
        return out

    def series(self) -> dict[str, dict[str, Any]]:
        """{run.state: {"mask_flips", "content_changes": {"mean", "sem"} per comparison}}."""
        keys = ("mean", "sem")
        return {
            key: {"mask_flips": mean_std_sem(flips, keys), "content_changes": mean_std_sem(changes, keys)}
            for key, flips, changes, _ in self._counts()
        }

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle, run, state and comparison, for parquet."""
        flips, changes = (np.array([list(by.values()) for by in of.values()]) for of in (self.flips, self.changes))
        n, steps = flips.shape[2:]
        axes = {"run": list(self.flips), "state": list(STATES.values()), "puzzle": range(n)}
        return long_table({**axes, "update": range(1, steps + 1)}, mask_flips=flips, content_changes=changes)


def freeze_study(study: Study, interventions: Sequence[Intervention] = ()) -> FreezeResult:
    """Normal run, z_H frozen, z_L frozen, and any further interventions, over the same puzzles."""
    runs: dict[str, Intervention | None] = {
        "normal": None,
        "freeze_z_H": Intervention("freeze", "z_h"),
        "freeze_z_L": Intervention("freeze", "z_l"),
        **{intervention.name: intervention for intervention in interventions},
    }
    # No token of a generic grid is a mask: all its changes are of content.
    mask_token = {"sudoku": SudokuTask.blank_token, "maze": MazeTask.PATH}.get(study.task.name, -1)

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        out = {}
        for run, intervention in runs.items():
            rollout = run_with(part, intervention, first=first).rollout
            for state in STATES:
                grids = getattr(rollout, f"z_{state}")
                for kind, counts in zip(("flips", "changes"), count_changes(grids, mask_token)):
                    out[f"{kind}|{run}|{state}"] = counts.cpu().numpy()
                out[f"exact|{run}|{state}"] = right_grids(grids[:, -1].cpu().numpy(), part.labels.numpy())
        return out

    names = {run: repr(intervention) for run, intervention in runs.items()}
    return FreezeResult(**over_puzzles(study, "freeze", compute, runs=names), updates=study.updates)


def across_runs(summaries: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and std over checkpoints of their means: {run.state: {measure: {"n_runs", "mean", "std", "runs"}}}."""
    out: dict[str, dict[str, Any]] = {}
    for key, measures in summaries[0].items():
        out[key] = {}
        for measure in measures:
            runs = [summary[key][measure]["mean"] for summary in summaries]
            out[key][measure] = {"n_runs": len(runs), **mean_std_sem(runs, ("mean", "std")), "runs": runs}
    return out


def from_published(file: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    """The published five-seed table (`freeze_5runs.json`) in the shape of `across_runs`."""
    out: dict[str, dict[str, Any]] = {}
    # Frozen z_H is a study of z_L (the state that still moves), and the other way round.
    for frozen, moving in (("zH", "z_L"), ("zL", "z_H")):
        for title, row in file[f"{task}_freeze_{frozen}"]["metrics"].items():
            what, _, run = title.partition(": ")
            if not run:
                continue  # the difference of two others
            kind = "mask_flips" if "flips" in what else "content_changes"
            measure = "exact_accuracy" if "accuracy" in what else f"{kind}_per_update" if "per step" in what else kind
            run = run.replace("freeze z", "freeze_z")
            out.setdefault(f"{run}.{moving}", {})[measure] = {
                "n_runs": row["n_runs"],
                "mean": row["mean_across_runs"],
                "std": row["std_across_runs"],
                "runs": list(row["per_run_means"].values()),
            }
    return out


# Five seeds of the default variant, 1,000 test puzzles each: (mean, std) of content changes per puzzle and of exact
# accuracy. Source: the public repository's README (means) and its freeze results (spread).
_PUBLISHED = {
    ("sudoku", 9, 9): {
        "normal.z_L": ((1235, 271), (0.108, 0.241)),
        "freeze_z_H.z_L": ((323, 178), (0.002, None)),
        "normal.z_H": ((275, 28), (0.551, 0.019)),
        "freeze_z_L.z_H": ((551, 615), (0.0, None)),
    },
    ("maze", 30, 30): {
        "normal.z_L": ((1289, 529), (0.0, None)),
        "freeze_z_H.z_L": ((2305, 734), (0.0, None)),
        "normal.z_H": ((825, 146), (0.710, 0.065)),
        "freeze_z_L.z_H": ((2880, 1951), (0.0, None)),
    },
}


def published(task: GridTask) -> dict[str, dict[str, Any]]:
    """The paper's freeze table for its two tasks and sizes, in the shape of `across_runs`; {} for other grids."""
    return {
        key: {
            measure: {"n_runs": 5, "mean": mean, "std": std, "runs": []}
            for measure, (mean, std) in zip(("content_changes", "exact_accuracy"), numbers)
        }
        for key, numbers in _PUBLISHED.get((task.name, task.height, task.width), {}).items()
    }


def freeze_table(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]] | None = None) -> str:
    """Markdown: mask flips, content changes and exact accuracy per run and state; published numbers beside, if any.

    ours: of `across_runs` (± std over checkpoints) or `FreezeResult.summary` (± std over puzzles).
    """

    def cell(source: dict[str, Any], measure: str, scale: float = 1, digits: int = 1) -> str:
        entry = source.get(measure) or {"mean": None, "std": None}
        return plus_minus(entry["mean"], entry["std"], digits, scale)

    header = ["run", "state", "mask flips", "content changes", "exact accuracy, %"]
    header += ["published content changes", "published exact accuracy, %"] if theirs else []
    rows = []
    for key, measures in ours.items():
        run, _, state = key.rpartition(".")
        row = [run.replace("freeze_", "frozen "), state]
        row += [cell(measures, "mask_flips"), cell(measures, "content_changes"), cell(measures, "exact_accuracy", 100)]
        if theirs:
            their = theirs.get(key, {})
            row += [cell(their, "content_changes", digits=0), cell(their, "exact_accuracy", 100)]
        rows.append(row)
    note = "\nPublished: mean ± std over five seeds, a spread as large as some of the effects.\n" if theirs else ""
    return markdown_table(header, rows) + note
