"""Beyond the paper: how the states move, whether they settle, when the model should stop, where failures are decided,
and what a linear probe reads off each state.

    result = geometry_study(Study(model, inputs, labels))
    result.curves()                  # norms, steps and the angle between the states, per update
    result.convergence()             # when decodes and states stop moving
    result.halting(), result.failures(), result.trajectories()
    probes(study)                    # does z_L hold pencil marks?

Every part comes with `say_…`, one sentence made of its own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from air_model.analysis.common import Filled, Study, long_table, mean_std_sem, over_puzzles
from air_model.analysis.freeze import STATES
from air_model.analysis.interventions import run_with
from air_model.metrics.puzzle_accuracy.scores import calibration
from air_model.processing_air import GridTask
from air_model.solving_air import AirUpdate

STILL = 0.01  # a state whose relative step over an ACT step is below this has settled


@dataclass
class GeometryResult:
    """Per puzzle (N), update (U) or ACT step (K): see the attributes.

    norm, step: {state: (N, U)} mean over cells; cosine (N, U) between the states; settle {state: (N, K)} relative
    change of the whole state over an ACT step; mean {state: (N, K, D)}; halt, proceed (N, K) logits of the q head;
    decode_changed {state: (N, K)} share of cells that differ from the ACT step before. With labels, else None:
    right (N, K) share of cells of z_H that are right after each ACT step; of the cells wrong in the end the share that
    was never right at the end of an ACT step (never_right, (N,)) or had been right (lost, (N,)), and the mean ACT step
    since which they hold their last token (wrong_since, (N,)).
    """

    norm: dict[str, np.ndarray]
    step: dict[str, np.ndarray]
    settle: dict[str, np.ndarray]
    mean: dict[str, np.ndarray]
    decode_changed: dict[str, np.ndarray]
    cosine: np.ndarray
    halt: np.ndarray
    proceed: np.ndarray
    per_step: int
    q_continue: bool
    right: np.ndarray | None = None
    never_right: np.ndarray | None = None
    lost: np.ndarray | None = None
    wrong_since: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.cosine)

    @property
    def solved(self) -> np.ndarray | None:
        """(N, K) bool: z_H wholly right after each ACT step."""
        return None if self.right is None else self.right >= 1

    def curves(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{"z_H": {"norm", "step": {"n", "mean" (U,), "sem"}}, "z_L": ..., "both": {"cosine": ...}}."""
        both = (("norm", self.norm), ("step", self.step))
        out = {name: {key: mean_std_sem(of[state]) for key, of in both} for state, name in STATES.items()}
        return {**out, "both": {"cosine": mean_std_sem(self.cosine)}}

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle and update, for parquet."""
        values = {"cosine": self.cosine}
        for state, name in STATES.items():
            values |= {f"norm_{name}": self.norm[state], f"step_{name}": self.step[state]}
        n, updates = self.cosine.shape
        return long_table({"puzzle": np.arange(n), "update": np.arange(updates)}, **values)

    def convergence(self) -> dict[str, Any]:
        """Per state: relative change over each ACT step, and the share of puzzles whose decode no longer moves."""
        out = {}
        for state, name in STATES.items():
            changed = self.decode_changed[state]
            # A decode is final from step k on if no later step changes it.
            later = np.flip(np.maximum.accumulate(np.flip(changed > 0, 1), 1), 1)
            settled = np.concatenate([~later[:, 1:], np.ones((len(changed), 1), bool)], 1)
            out[name] = {
                "relative_change": mean_std_sem(self.settle[state]),
                "decode_final": mean_std_sem(settled),
                "final_from": mean_std_sem(np.argmax(settled, 1)),
                "fixed_point": float((self.settle[state][:, -1] < STILL).mean()),
            }
        return out

    def halting(self) -> dict[str, Any] | None:
        """Calibration of sigmoid(q_halt) over all ACT steps, and when the model would stop; None without labels."""
        if self.right is None:
            return None
        solved = self.solved
        probability = 1 / (1 + np.exp(-self.halt))
        stops = self.halt > (self.proceed if self.q_continue else 0)
        last = stops.shape[1] - 1
        stop_at = np.where(stops.any(1), np.argmax(stops, 1), last)
        first_right = np.where(solved.any(1), np.argmax(solved, 1), -1)
        rows = np.arange(len(stops))
        ever = first_right >= 0
        return {
            "calibration": calibration(probability.reshape(-1), solved.reshape(-1)),
            "steps_used": mean_std_sem(stop_at + 1),
            "never_stops": float((~stops.any(1)).mean()),
            "accuracy_when_stopped": float(solved[rows, stop_at].mean()),
            "accuracy_after_all_steps": float(solved[:, -1].mean()),
            "delay": mean_std_sem((stop_at - first_right)[ever]),
            "stopped_too_early": float((solved[:, -1] & ~solved[rows, stop_at]).mean()),
            "first_solved_at": np.bincount(first_right[ever], minlength=last + 1).tolist(),
            "stops_at": np.bincount(stop_at, minlength=last + 1).tolist(),
        }

    def failures(self) -> dict[str, Any] | None:
        """Puzzles whose last z_H is wrong: when they were best, and whether their wrong cells had ever been right."""
        if self.right is None:
            return None
        failed = ~self.solved[:, -1]
        best = np.argmax(self.right, 1)
        return {
            "n_failed": int(failed.sum()),
            "n": len(self),
            "solved_once_then_lost": int((failed & self.solved.any(1)).sum()),
            "best_step": mean_std_sem(best[failed]),
            "best_right": mean_std_sem(self.right.max(1)[failed]),
            "final_right": mean_std_sem(self.right[failed, -1]),
            "never_right": mean_std_sem(self.never_right[failed]),
            "lost": mean_std_sem(self.lost[failed]),
            "decided_at": mean_std_sem(self.wrong_since[failed]),
            "right_solved": mean_std_sem(self.right[~failed]),
            "right_failed": mean_std_sem(self.right[failed]),
        }

    def trajectories(self, most: int = 256) -> dict[str, Any]:
        """The mean state of each puzzle after every ACT step on the first two principal axes of all of them.

        Returns:
            {"z_H": {"points": (n, K, 2), "explained": (2,)}, "z_L": ..., "solved": (n,) or None}.
        """
        out: dict[str, Any] = {"solved": None if self.right is None else self.solved[:most, -1]}
        for state, name in STATES.items():
            z = self.mean[state][:most].astype(np.float64)
            flat = z.reshape(-1, z.shape[-1])
            flat = flat - flat.mean(0)
            values, axes = np.linalg.eigh(flat.T @ flat)
            axes = axes[:, ::-1][:, :2]
            axes = axes * np.sign(axes[np.argmax(np.abs(axes), 0), np.arange(axes.shape[1])])  # a fixed orientation
            total = values.sum()
            out[name] = {
                "points": (flat @ axes).reshape(*z.shape[:2], -1),
                "explained": values[::-1][:2] / total if total > 0 else np.zeros(2),
            }
        return out


def geometry_study(study: Study) -> GeometryResult:
    """Run all puzzles once and measure their states, decodes and wishes to halt."""
    config, per_step = study.config, len(study.config.schedule)

    def compute(part: Study, first: int) -> dict[str, np.ndarray]:
        by_update, by_step = Filled(len(part), len(part.updates)), Filled(len(part), config.halt_max_steps)
        before: dict[str, dict[str, Tensor]] = {}  # cells after the last update, and after the last ACT step

        def measure(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
            step, rows = int(update.steps[0]), update.rows  # all puzzles of a batch are at one step
            at, ends = step * per_step + update.index, update.index == per_step - 1
            states = {s: z[:, config.num_prefix_positions :].float() for s, z in (("h", z_h), ("l", z_l))}
            if at == 0:
                start = part.model.initial_carry(1, dtype=z_h.dtype)
                begin = {s: start[f"z_{s}"][:, config.num_prefix_positions :].float() for s in STATES}
                before.update(update=begin, step=begin)
            for s, z in states.items():
                by_update.put(f"norm|{s}", z.norm(dim=-1).mean(-1), rows, at)
                by_update.put(f"step|{s}", (z - before["update"][s]).norm(dim=-1).mean(-1), rows, at)
                if ends:
                    old = before["step"][s]
                    change = (z - old).flatten(1).norm(dim=-1) / old.flatten(1).norm(dim=-1).clamp_min(1e-9)
                    by_step.put(f"settle|{s}", change, rows, step)
                    by_step.put(f"mean|{s}", z.mean(1), rows, step)
            cosine = torch.nn.functional.cosine_similarity(states["h"], states["l"], dim=-1)
            by_update.put("cosine", cosine.mean(-1), rows, at)
            if ends:
                for name, logit in zip(("halt", "proceed"), part.model.q_head(z_h[:, 0]).float().unbind(-1)):
                    by_step.put(name, logit, rows, step)
                before["step"] = states
            before["update"] = states

        rollout = run_with(part, hook=measure).rollout
        out = by_update.arrays() | by_step.arrays()
        ends = {s: getattr(rollout, f"z_{s}")[:, per_step - 1 :: per_step].cpu().numpy() for s in STATES}
        for s, grids in ends.items():
            changed = (grids[:, 1:] != grids[:, :-1]).mean(-1)
            out[f"decode_changed|{s}"] = np.concatenate([np.ones((len(grids), 1)), changed], 1)
        return out if part.labels is None else out | _failure_arrays(ends["h"], part.labels.numpy())

    found = over_puzzles(study, "geometry", compute)
    return GeometryResult(**found, per_step=per_step, q_continue=config.q_continue)


def _failure_arrays(ends: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What became of the cells that are wrong in the end; ends (N, K, S) decodes of z_H after each ACT step."""
    counted = labels > 0
    right = (ends == labels[:, None]) & counted[:, None]
    wrong = ~right[:, -1] & counted
    total = np.maximum(wrong.sum(-1), 1)
    was_right = right.any(1)
    same = ends == ends[:, -1:]
    held = np.flip(np.logical_and.accumulate(np.flip(same, 1), 1), 1)  # final token from here to the end
    since = np.argmax(held, 1)
    return {
        "right": right.sum(-1) / np.maximum(counted.sum(-1), 1)[:, None],
        "never_right": (wrong & ~was_right).sum(-1) / total,
        "lost": (wrong & was_right).sum(-1) / total,
        "wrong_since": (since * wrong).sum(-1) / total,
    }


# ---- linear probes -------------------------------------------------------------------------------------------------


def probe_targets(task: GridTask, inputs: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, str]:
    """What a probe should read off each cell.

    Returns:
        targets (N, S, C) bool, mask (N, S) of cells that count, and what the targets are. Sudoku: candidates of the
        open cells (digits that no clue in row, column or box excludes). Maze: free cells on some shortest path.
    """
    if task.name == "sudoku":
        digits = np.arange(2, task.vocab_size)
        given = (inputs[:, :, None] == digits).astype(np.float32)  # (N, S, C)
        seen = np.einsum("st,ntc->nsc", task.peers.astype(np.float32), given) > 0
        return ~seen, inputs == task.blank_token, "candidates left by the clues"
    if task.name == "maze":
        tokens = inputs.astype(np.uint8)
        to_goal = task.distances(tokens)
        swapped = tokens.copy()
        swapped[tokens == task.START], swapped[tokens == task.GOAL] = task.GOAL, task.START
        from_start = task.distances(swapped)
        length = np.take_along_axis(to_goal, np.argmax(tokens == task.START, -1)[:, None], 1)
        on_path = (to_goal >= 0) & (from_start >= 0) & (to_goal + from_start == length)
        return on_path[:, :, None], tokens == task.SPACE, "cells on some shortest path"
    if labels is None:
        raise ValueError("Probes of a plain grid read its answers, but these puzzles come without labels.")
    targets = labels[:, :, None] == np.arange(1, task.vocab_size)
    return targets, inputs == task.blank_token, "tokens of the answer"


def probes(study: Study, most: int = 200) -> dict[str, Any]:
    """Ridge regression from single cells' states to what `probe_targets` names, fitted on half of the puzzles.

    Args:
        most: puzzles used.

    Returns:
        {"what", "n_train", "n_test", "base_rate", "steps", "auc": {"z_H": [...], "z_L": [...], "input": [...]}}: area
        under the ROC curve on the other half (0.5 = nothing, 1 = all) after the first, third and last ACT step.
        "input" is the same probe on the one-hot puzzle cell alone: what no context can beat is not read off the state.
    """
    last = study.config.halt_max_steps - 1
    steps = sorted({0, min(2, last), last})
    part = study.part(slice(0, most))
    labels = None if part.labels is None else part.labels.numpy()
    targets, mask, what = probe_targets(part.task, part.inputs.numpy(), labels)
    train = np.arange(len(part)) % 2 == 0
    y = {half: targets[train == half][mask[train == half]] for half in (True, False)}
    out: dict[str, Any] = {"what": what, "n_train": len(y[True]), "n_test": len(y[False]), "base_rate": None}
    out |= {"steps": steps, "auc": {}}
    if not out["n_test"]:
        return out
    out["base_rate"] = float(y[False].mean())
    if not out["n_train"]:
        return out
    skip, at_end = part.config.num_prefix_positions, len(part.config.schedule) - 1
    states = Filled(len(part), len(steps))

    def keep(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        step = int(update.steps[0])
        if update.index == at_end and step in steps:
            for state, z in (("h", z_h), ("l", z_l)):
                states.put(state, z[:, skip:].float().cpu(), update.rows.cpu(), steps.index(step))

    part.solve(hook=keep)
    for state, z in states.arrays().items():
        out["auc"][STATES[state]] = [_probe(z[:, i], mask, train, y) for i in range(len(steps))]
    onehot = np.eye(part.task.vocab_size, dtype=np.float32)[part.inputs.numpy()]
    cells = part.task.seq_len
    where = np.broadcast_to(np.eye(cells, dtype=np.float32), (len(part), cells, cells))
    context = onehot if cells > 256 else np.concatenate([onehot, where], -1)
    out["auc"]["input"] = [_probe(context, mask, train, y)] * len(steps)
    return out


def _probe(z: np.ndarray, mask: np.ndarray, train: np.ndarray, y: dict[bool, np.ndarray]) -> float:
    """Mean AUC over targets of a ridge regression; z (N, S, D)."""
    x, test = (z[half][mask[half]].astype(np.float64) for half in (train, ~train))
    mean = x.mean(0)
    x, test = x - mean, test - mean
    gram = x.T @ x
    ridge = 1e-3 * np.trace(gram) / len(gram) + 1e-9
    target = y[True].astype(np.float64)
    weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ (target - target.mean(0)))
    scores = test @ weights
    areas = [area for s, truth in zip(scores.T, y[False].T) if (area := _auc(s, truth)) is not None]
    return float(np.mean(areas)) if areas else 0.5


def _auc(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve, ties shared; None where only one class is there."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    return float((ranks(score)[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, those of ties averaged."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


# ---- one sentence each, out of the numbers -------------------------------------------------------------------------


def say_geometry(curves: dict[str, Any]) -> str:
    steps = {s: np.asarray(curves[s]["step"]["mean"]) for s in ("z_H", "z_L")}
    moved = {s: v[v > 0][-8:].mean() if (v > 0).any() else 0.0 for s, v in steps.items()}
    more, less = ("z_H", "z_L") if moved["z_H"] >= moved["z_L"] else ("z_L", "z_H")
    cosine = np.asarray(curves["both"]["cosine"]["mean"])
    return (
        f"At the end {more} moves {moved[more]:.3g} per update and {less} {moved[less]:.3g} "
        f"(mean distance of a cell's state); the cosine between the states goes from {cosine[0]:.2f} to "
        f"{cosine[-1]:.2f}."
    )


def say_convergence(convergence: dict[str, Any]) -> str:
    parts = [
        f"{name}: the decode of {100 * float(entry['decode_final']['mean'][0]):.0f} % of the puzzles is final after "
        f"the first ACT step, on average after {entry['final_from']['mean'] + 1:.1f}, and "
        f"{100 * entry['fixed_point']:.0f} % of the states move less than {100 * STILL:.0f} % over the last one"
        for name, entry in convergence.items()
    ]
    return "; ".join(parts) + "."


def say_halting(halting: dict[str, Any]) -> str:
    error = halting["calibration"]["expected_calibration_error"]
    return (
        f"The halting probability is off by {100 * error:.1f} points on average; "
        f"stopping where the model wants to takes {halting['steps_used']['mean']:.1f} ACT steps and solves "
        f"{100 * halting['accuracy_when_stopped']:.1f} %, all steps solve "
        f"{100 * halting['accuracy_after_all_steps']:.1f} %."
    )


def say_failures(failures: dict[str, Any]) -> str:
    if not failures["n_failed"]:
        return f"None of the {failures['n']} puzzles failed."
    return (
        f"{failures['n_failed']} of {failures['n']} puzzles failed, {failures['solved_once_then_lost']} of them after "
        f"having been solved; {100 * failures['never_right']['mean']:.0f} % of their wrong cells were never right, "
        f"and those cells hold their last token since ACT step {failures['decided_at']['mean']:.1f} (counted from 0)."
    )


def say_trajectories(trajectories: dict[str, Any]) -> str:
    share = {s: 100 * float(np.sum(trajectories[s]["explained"])) for s in ("z_H", "z_L")}
    return (
        f"Two principal axes hold {share['z_H']:.0f} % of the variance of the puzzles' mean z_H over the ACT steps, "
        f"and {share['z_L']:.0f} % of that of z_L."
    )


def say_probes(result: dict[str, Any]) -> str:
    if not result["auc"]:
        return "There are too few puzzles for a probe."
    last = {name: values[-1] for name, values in result["auc"].items()}
    end = f"{max(('z_H', 'z_L'), key=last.get)} holds them more openly"
    if abs(last["z_H"] - last["z_L"]) <= 0.01:
        end = "the two states do not differ by more than 0.01"
    return (
        f"A linear probe reads {result['what']} off z_L with an AUC of {last['z_L']:.3f} and off z_H with "
        f"{last['z_H']:.3f} after the last ACT step ({last['input']:.3f} off the puzzle's cell alone): {end}."
    )
