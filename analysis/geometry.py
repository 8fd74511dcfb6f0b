"""Beyond the paper: how the states move, whether they settle, when the model should stop, where failures are decided,
and what a linear probe reads off each state.

    result = geometry_study(Study(model, inputs, labels))
    result.curves()                  # norms, steps and the angle between the states, per update
    result.convergence()             # when decodes and states stop moving
    result.halting(), result.failures(), result.trajectories()
    probes(study)                    # does z_L hold pencil marks?

`sentences` says each part in one, made of its own numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from air_model.analysis.common import Filled, Study, long_table, mean_std_sem, over_puzzles
from air_model.analysis.freeze import STATES
from air_model.analysis.interventions import run_with
from air_model.metrics.puzzle_accuracy.scores import calibration
from air_model.processing_air import PAD, GridTask
from air_model.solving_air import AirUpdate

STILL = 0.01  # a state whose relative step over an ACT step is below this has settled


@dataclass
class GeometryResult:
    """Per puzzle (N), update (U) or ACT step (K): see the attributes.

    norm, step: {state: (N, U)} mean over cells; cosine (N, U) between the states; settle {state: (N, K)} relative
    change of the whole state over an ACT step; mean {state: (N, K, D)}; halt, proceed (N, K) logits of the q head;
    decode_changed {state: (N, K)} share of cells that differ from the ACT step before;
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
    right: np.ndarray
    never_right: np.ndarray
    lost: np.ndarray
    wrong_since: np.ndarray
    per_step: int
    q_continue: bool

    def __len__(self) -> int:
        return len(self.cosine)

    @property
    def solved(self) -> np.ndarray:
        """(N, K) bool: z_H wholly right after each ACT step."""
        return self.right >= 1

    def curves(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{"z_H": {"norm", "step": {"n", "mean" (U,), "sem"}}, "z_L": ..., "both": {"cosine": ...}}."""
        out = {name: {"norm": mean_std_sem(self.norm[state]), "step": mean_std_sem(self.step[state])}
               for state, name in STATES.items()}  # fmt: skip
        return out | {"both": {"cosine": mean_std_sem(self.cosine)}}

    def columns(self) -> dict[str, np.ndarray]:
        """One line per puzzle and update, for parquet."""
        values = {f"{key}_{name}": of[state] for state, name in STATES.items()
                  for key, of in (("norm", self.norm), ("step", self.step))}  # fmt: skip
        n, updates = self.cosine.shape
        return long_table({"puzzle": range(n), "update": range(updates)}, cosine=self.cosine, **values)

    def convergence(self) -> dict[str, Any]:
        """Per state: relative change over each ACT step, and the share of puzzles whose decode no longer moves."""
        out = {}
        for state, name in STATES.items():
            moves = self.decode_changed[state] > 0
            final_from = moves.shape[1] - 1 - np.argmax(moves[:, ::-1], 1)  # the first step counts as a move
            out[name] = {
                "relative_change": mean_std_sem(self.settle[state]),
                "decode_final": mean_std_sem(np.arange(moves.shape[1]) >= final_from[:, None]),
                "final_from": mean_std_sem(final_from),
                "fixed_point": float((self.settle[state][:, -1] < STILL).mean()),
            }
        return out

    def halting(self) -> dict[str, Any]:
        """Calibration of sigmoid(q_halt) over all ACT steps, and when the model would stop."""
        solved, ever, steps = self.solved, self.solved.any(1), self.halt.shape[1]
        stops = self.halt > (self.proceed if self.q_continue else 0)
        stop_at = np.where(stops.any(1), np.argmax(stops, 1), steps - 1)
        first_right, at_stop = np.argmax(solved, 1), solved[np.arange(len(stops)), stop_at]
        return {
            "calibration": calibration((1 / (1 + np.exp(-self.halt))).reshape(-1), solved.reshape(-1)),
            "steps_used": mean_std_sem(stop_at + 1),
            "never_stops": (~stops.any(1)).mean(),
            "accuracy_when_stopped": at_stop.mean(),
            "accuracy_after_all_steps": solved[:, -1].mean(),
            "delay": mean_std_sem((stop_at - first_right)[ever]),
            "stopped_too_early": (solved[:, -1] & ~at_stop).mean(),
            "first_solved_at": np.bincount(first_right[ever], minlength=steps),
            "stops_at": np.bincount(stop_at, minlength=steps),
        }

    def failures(self) -> dict[str, Any]:
        """Puzzles whose last z_H is wrong: when they were best, and whether their wrong cells had ever been right."""
        failed = ~self.solved[:, -1]
        return {
            "n_failed": int(failed.sum()),
            "n": len(self),
            "solved_once_then_lost": int((failed & self.solved.any(1)).sum()),
            "best_step": mean_std_sem(np.argmax(self.right, 1)[failed]),
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
            {"z_H": {"points": (n, K, 2), "explained": (2,)}, "z_L": ..., "solved": (n,)}.
        """
        out: dict[str, Any] = {"solved": self.solved[:most, -1]}
        for state, name in STATES.items():
            z = self.mean[state][:most].astype(np.float64)
            flat = z.reshape(-1, z.shape[-1])
            flat = flat - flat.mean(0)
            values, axes = np.linalg.eigh(flat.T @ flat)
            axes, explained = axes[:, :-3:-1], values[:-3:-1] / (values.sum() or 1)
            axes = axes * np.sign(axes[np.argmax(np.abs(axes), 0), np.arange(2)])  # a fixed orientation
            out[name] = {"points": (flat @ axes).reshape(*z.shape[:2], 2), "explained": explained}
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
        return out | _failure_arrays(ends["h"], part.labels.numpy())

    found = over_puzzles(study, "geometry", compute)
    return GeometryResult(**found, per_step=per_step, q_continue=config.q_continue)


def _failure_arrays(ends: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What became of the cells that are wrong in the end; ends (N, K, S) decodes of z_H after each ACT step."""
    counted = labels > 0
    right = (ends == labels[:, None]) & counted[:, None]
    wrong = ~right[:, -1] & counted
    total = np.maximum(wrong.sum(-1), 1)
    was_right = right.any(1)
    same = (ends == ends[:, -1:])[:, ::-1]  # as in the end, backwards
    since = ends.shape[1] - np.logical_and.accumulate(same, 1).sum(1)
    return {
        "right": right.sum(-1) / np.maximum(counted.sum(-1), 1)[:, None],
        "never_right": (wrong & ~was_right).sum(-1) / total,
        "lost": (wrong & was_right).sum(-1) / total,
        "wrong_since": (since * wrong).sum(-1) / total,
    }


# ---- linear probes -------------------------------------------------------------------------------------------------


def probe_targets(task: GridTask, inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """What a probe should read off each cell.

    Returns:
        targets (N, S, C) bool, mask (N, S) of cells that count, and what the targets are. Sudoku: candidates of the
        open cells (digits that no clue in row, column or box excludes). Maze: free cells on some shortest path.
        Generic grid: the tokens of all cells with a label.
    """
    if task.name == "sudoku":
        digits = np.arange(2, task.vocab_size)
        given = (inputs[:, :, None] == digits).astype(np.float32)  # (N, S, C)
        seen = np.einsum("st,ntc->nsc", task.peers.astype(np.float32), given) > 0
        return ~seen, inputs == task.blank_token, "candidates left by the clues"
    if task.name == "maze":
        start, goal = inputs == task.START, inputs == task.GOAL
        swapped = np.where(start, task.GOAL, np.where(goal, task.START, inputs))
        to_goal, from_start = (task.distances(grids.astype(np.uint8)) for grids in (inputs, swapped))
        on_path = (to_goal >= 0) & (from_start >= 0) & (to_goal + from_start == to_goal[start][:, None])
        return on_path[:, :, None], inputs == task.SPACE, "cells on some shortest path"
    targets = labels[:, :, None] == np.arange(1, task.vocab_size)
    return targets, labels != PAD, "tokens of the answer"


def probes(study: Study, most: int = 200) -> dict[str, Any]:
    """Ridge regression from single cells' states to what `probe_targets` names, fitted on half of the puzzles.

    Returns, from the first `most` puzzles:
        {"what", "n_train", "n_test", "base_rate", "steps", "auc": {"z_H": [...], "z_L": [...], "input": [...]}}: area
        under the ROC curve on the other half (0.5 = nothing, 1 = all) after the first, third and last ACT step.
        "input" is the same probe on the one-hot puzzle cell alone: what no context can beat is not read off the state.
    """
    last = study.config.halt_max_steps - 1
    steps = sorted({0, min(2, last), last})
    part = study.part(slice(0, most))
    targets, mask, what = probe_targets(part.task, part.inputs.numpy(), part.labels.numpy())
    train = np.arange(len(part)) % 2 == 0
    y = {half: targets[train == half][mask[train == half]] for half in (True, False)}
    out: dict[str, Any] = {"what": what, "n_train": len(y[True]), "n_test": len(y[False]), "base_rate": None}
    out |= {"steps": steps, "auc": {}}
    if not out["n_train"] or not out["n_test"]:
        return out
    out["base_rate"] = float(y[False].mean())
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


# ---- sentences -----------------------------------------------------------------------------------------------------


def sentences(found: dict[str, Any], paths: dict[str, Any], probed: dict[str, Any]) -> dict[str, str]:
    """{title: a sentence made of its own numbers}.

    found: what the methods curves, convergence, halting and failures return, by name; paths, probed: what
    `trajectories` and `probes` do.
    """
    curves, halting, failures = found["curves"], found["halting"], found["failures"]
    moves = {s: curves[s]["step"]["mean"] for s in STATES.values()}
    moved = {s: v[v > 0][-8:].mean() if (v > 0).any() else 0.0 for s, v in moves.items()}
    more, less = ("z_H", "z_L") if moved["z_H"] >= moved["z_L"] else ("z_L", "z_H")
    cosine = curves["both"]["cosine"]["mean"]
    settled = [
        f"{name}: the decode of {100 * entry['decode_final']['mean'][0]:.0f} % of the puzzles is final after "
        f"the first ACT step, on average after {entry['final_from']['mean'] + 1:.1f}, and "
        f"{100 * entry['fixed_point']:.0f} % of the states move less than {100 * STILL:.0f} % over the last one"
        for name, entry in found["convergence"].items()
    ]
    z_h, z_l = (100 * paths[s]["explained"].sum() for s in STATES.values())
    failed = f"None of the {failures['n']} puzzles failed."
    if failures["n_failed"]:
        failed = (
            f"{failures['n_failed']} of {failures['n']} puzzles failed, {failures['solved_once_then_lost']} of them "
            f"after having been solved; {100 * failures['never_right']['mean']:.0f} % of their wrong cells were never "
            "right, and those cells hold their last token since ACT step "
            f"{failures['decided_at']['mean']:.1f} (counted from 0)."
        )
    probe = "There are too few puzzles for a probe."
    if probed["auc"]:
        last = {name: values[-1] for name, values in probed["auc"].items()}
        end = f"{max(STATES.values(), key=last.get)} holds them more openly"
        if abs(last["z_H"] - last["z_L"]) <= 0.01:
            end = "the two states do not differ by more than 0.01"
        if max(last["z_H"], last["z_L"]) <= last["input"]:
            end = "neither holds more than that cell"
        probe = (
            f"A linear probe reads {probed['what']} off z_L with an AUC of {last['z_L']:.3f} and off z_H with "
            f"{last['z_H']:.3f} after the last ACT step ({last['input']:.3f} off the puzzle's cell alone): {end}."
        )
    return {
        "Geometry of the states": f"At the end {more} moves {moved[more]:.3g} per update and {less} {moved[less]:.3g} "
        "(mean distance of a cell's state); the cosine between the states goes from "
        f"{cosine[0]:.2f} to {cosine[-1]:.2f}.",
        "Convergence": "; ".join(settled) + ".",
        "Trajectories": f"Two principal axes hold {z_h:.0f} % of the variance of the puzzles' mean z_H over the ACT "
        f"steps, and {z_l:.0f} % of that of z_L.",
        "Halting": "The halting probability is off by "
        f"{100 * halting['calibration']['expected_calibration_error']:.1f} points on average; "
        f"stopping where the model wants to takes {halting['steps_used']['mean']:.1f} ACT steps and solves "
        f"{100 * halting['accuracy_when_stopped']:.1f} %, all steps solve "
        f"{100 * halting['accuracy_after_all_steps']:.1f} %.",
        "Failures": failed,
        "Probes": probe,
    }
