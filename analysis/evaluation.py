"""Evaluation: puzzles through `solve_puzzles`, by any number of processes, so that a killed run goes on.

    evaluation = Evaluation(models, puzzles, parts_folder, attempts=8)
    evaluation.run(), evaluation.result()                                 # the JSON of scripts/evaluate.py
    curve = thought_curve(model, puzzles, max_act_steps=64, attempts=8)   # accuracy against ACT steps and attempts

Every process takes each W-th puzzle that no part holds yet, and writes what it has finished as a part every half
minute. Parts belong to one combination of weights, data and settings; the number of processes may change.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from air_model.analysis.common import add_model, right_grids
from air_model.analysis.figures import PALETTE, panels, save
from air_model.answers_air import Answers, keep_givens, symmetric_views
from air_model.attempts_air import solve_puzzles
from air_model.datasets_builders.loading import PuzzleSet
from air_model.metrics.puzzle_accuracy.scores import MAZE_EDGES, SUDOKU_EDGES, calibration, score, wilson
from air_model.modeling_air import AirModel
from air_model.processing_air import PAD, Symmetry
from air_model.records import make_folder, whole
from air_model.solving_air import AirUpdate

COLUMNS = ("row", "tokens", "q_halt_logits", "act_steps", "attempts", "view", "complete", "consistent", "valid")


class Evaluation:
    """One evaluation of one or several checkpoints (together) on one split.

    Args:
        models: as in `solve_puzzles`. puzzles: PuzzleSet. folder: where parts go; a subfolder per fingerprint.
        rank, world: this process and their number; wait: a barrier between them. options: of `solve_puzzles`.
    """

    def __init__(
        self,
        models: Sequence[AirModel],
        puzzles: PuzzleSet,
        folder: str | os.PathLike,
        *,
        rank: int = 0,
        world: int = 1,
        wait: Callable[[], None] = lambda: None,
        progress: bool = True,
        save_seconds: float = 30.0,
        **options: Any,
    ) -> None:
        self.models, self.puzzles, self.options = list(models), puzzles, options
        self.rank, self.world, self.wait = rank, world, wait
        self.progress, self.save_seconds = progress, save_seconds
        # What decides the answers; batch_size changes speed alone.
        deciding = {k: v for k, v in options.items() if k != "batch_size"}
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode())
        digest.update(puzzles.fingerprint.encode())
        for model in self.models:
            add_model(digest, model)
        self.folder = Path(folder) / digest.hexdigest()[:16]
        self.stats: dict[str, Any] = {}  # of `AirModel.solve`, after `run`
        self.saved = 0.0  # when the newest part was written

    def run(self) -> None:
        """Solve this process's share of what no part holds yet."""
        make_folder(self.folder)
        total = len(self.puzzles)
        rows = np.setdiff1d(np.arange(total), self.read()["row"])[self.rank :: self.world]
        # Nobody writes before everybody has read, or the shares would not fit together.
        self.wait()
        if not len(rows):
            return
        mine = self.puzzles.select(rows)
        pending: list[tuple[np.ndarray, Answers]] = []
        exact = seen = 0
        self.saved = time.perf_counter()
        shown = (total, total - len(rows)) if self.world == 1 else (len(rows), 0)
        bar = tqdm(total=shown[0], initial=shown[1], unit="puzzle", disable=not self.progress, desc="evaluate")

        def keep(at: np.ndarray, answers: Answers) -> None:
            nonlocal exact, seen
            pending.append((rows[at], answers))
            exact += int(right_grids(answers.tokens, mine.labels[at]).sum())
            seen += len(at)
            bar.set_postfix_str(f"{exact / seen:.1%} exact", refresh=False)
            bar.update(len(at))
            if time.perf_counter() - self.saved > self.save_seconds:
                self.write(pending)

        given = {"check": False, "puzzle_ids": mine.ids_for(self.models[0]), "on_answers": keep, **self.options}
        with bar:
            self.stats = solve_puzzles(self.models, self.puzzles.task, mine.inputs, **given).stats
        if pending:
            self.write(pending)

    def write(self, pending: list[tuple[np.ndarray, Answers]]) -> None:
        """Empty `pending` into one part: an .npz that appears whole."""
        now = time.perf_counter()
        found = [{"row": row, **vars(answers), **answers.verdict._asdict()} for row, answers in pending]
        columns = {name: np.concatenate([one[name] for one in found]) for name in COLUMNS}
        part = self.folder / f"part-{self.rank}-{uuid.uuid4().hex}.npz"
        with whole(part) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **columns, seconds=np.float64((now - self.saved) / self.world))
        self.saved = now
        pending.clear()

    def read(self) -> dict[str, np.ndarray]:
        """All parts together, one row per puzzle, in the order of the puzzles; and the seconds they took."""
        empty = {name: np.zeros(0) for name in COLUMNS}
        empty |= {"row": np.zeros(0, np.int64), "tokens": np.zeros((0, self.puzzles.task.seq_len), np.uint8)}
        parts, seconds = [empty], 0.0
        for path in sorted(self.folder.glob("part-*.npz")):
            with np.load(path, allow_pickle=False) as part:
                parts.append({name: part[name] for name in COLUMNS})
                seconds += float(part["seconds"])
        table = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        first = np.unique(table["row"], return_index=True)[1]
        return {**{name: column[first] for name, column in table.items()}, "seconds": np.float64(seconds)}

    def result(self) -> dict[str, Any]:
        """The numbers of a complete evaluation."""
        table, puzzles = self.read(), self.puzzles
        if len(table["row"]) != len(puzzles):
            raise ValueError(
                f"{len(puzzles) - len(table['row'])} of {len(puzzles)} puzzles are unsolved in {self.folder}: a "
                "process has died. Run the same command again; it goes on from there."
            )
        task, labels, seconds = puzzles.task, puzzles.labels, float(table["seconds"])
        known = {"inputs": puzzles.inputs, "rating": puzzles.rating}
        if task.has_rules:  # of a generic grid nobody knows which cells are open
            known |= {"blank_token": task.blank_token, "valid": table["valid"]}
        known |= {"edges": MAZE_EDGES if task.name == "maze" else SUDOKU_EDGES}
        labelled = (labels != 0).any(-1)  # nobody knows whether the others are right
        confidence = 1 / (1 + np.exp(-table["q_halt_logits"].astype(np.float64)))
        return {
            **score(table["tokens"], labels, **known),
            "mean_act_steps": float(table["act_steps"].mean()),
            "mean_attempts": float(table["attempts"].mean()),
            "puzzles_per_second": len(puzzles) / seconds if seconds else None,
            "seconds": seconds,
            "calibration": calibration(confidence[labelled], right_grids(table["tokens"], labels)[labelled]),
        }

    def clear(self) -> None:
        """Remove the parts, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # those of other settings stay
            self.folder.parent.rmdir()


def thought_curve(
    model: AirModel,
    puzzles: PuzzleSet,
    *,
    max_act_steps: int = 64,
    attempts: int = 8,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Accuracy with 1 ... attempts views stopped after 1, 2, 4, ... ACT steps, from one run of everything.

    Each view runs all steps, and what it would answer after each of them is kept; then for each pair (steps, attempts)
    the answer is the first view's that the rules accept, else that of the highest q_halt. ACT steps spent count the
    views up to the accepted one.

    Returns:
        {"n", "steps": [...], "attempts": [...], "exact_accuracy": [attempt][step], "valid_accuracy": …,
        "mean_act_steps": …, "halting": per limit of steps exact accuracy and mean ACT steps of halt="q"}
    """
    puzzles = puzzles.select((puzzles.labels != PAD).any(-1))  # nobody knows whether others are right
    task, n = puzzles.task, len(puzzles)
    views = symmetric_views(task, attempts, seed)
    steps = sorted({*(2**i for i in range(max_act_steps.bit_length()) if 2**i <= max_act_steps), max_act_steps})
    at = {step: i for i, step in enumerate(steps)}
    shape = (len(views.cells), len(steps), n)
    exact, valid, q = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.float32)
    halted_at, halted_right = np.full(n, max_act_steps + 1), np.zeros(n, bool)  # the puzzle as given, under halt="q"
    last = len(model.config.schedule) - 1
    ids = None if (ids := puzzles.ids_for(model)) is None else torch.from_numpy(ids)

    pairs = zip(map(Symmetry, *views), map(Symmetry, *views.inverse()))  # there and back
    for v, (view, home) in enumerate(tqdm(pairs, total=len(exact), desc="views", disable=not progress)):

        def look(update: AirUpdate, z_h: Tensor, z_l: Tensor, v: int = v, home: Symmetry = home) -> None:
            if update.index != last:
                return
            rows, step = update.rows.cpu().numpy(), int(update.steps[0]) + 1  # all puzzles are at one step: halt="max"
            q_halt, q_continue = model.q_head(z_h[:, 0]).unbind(-1)
            answer = home.apply(model.decode_state(z_h).argmax(-1).cpu().numpy().astype(np.uint8))
            answer = keep_givens(task, puzzles.inputs[rows], answer)
            right = right_grids(answer, puzzles.labels[rows])
            if v == 0:
                stops = model.halts(q_halt, q_continue).cpu().numpy() & (halted_at[rows] > max_act_steps)
                halted_at[rows[stops]], halted_right[rows[stops]] = step, right[stops]
            if step in at:
                exact[v, at[step], rows] = right
                valid[v, at[step], rows] = task.verdicts(puzzles.inputs[rows], answer).valid
                q[v, at[step], rows] = q_halt.float().cpu().numpy()

        options = {"max_act_steps": max_act_steps, "batch_size": batch_size, "return_logits": False}
        model.solve(torch.from_numpy(view.apply(puzzles.inputs)), ids, halt="max", hook=look, **options)

    tries = range(1, len(exact) + 1)
    result: dict[str, Any] = {"n": n, "steps": steps, "attempts": list(tries)}
    result |= {"exact_accuracy": [], "valid_accuracy": [], "mean_act_steps": []}
    limits = np.array(steps)[:, None]
    for k in tries:
        accepted = valid[:k].any(0) & task.has_rules  # (steps, N), as what follows
        first = valid[:k].argmax(0)
        choice = np.where(accepted, first, q[:k].argmax(0))[None]
        for name, right in (("exact_accuracy", exact), ("valid_accuracy", valid)):
            result[name].append(np.take_along_axis(right, choice, 0)[0].mean(1).tolist())
        result["mean_act_steps"].append((np.where(accepted, first + 1, k) * limits).mean(1).tolist())
    right = np.where(halted_at <= limits, halted_right, exact[0]).mean(1).tolist()
    spent = np.minimum(halted_at, limits).mean(1).tolist()
    names = ("max_act_steps", "exact_accuracy", "mean_act_steps")
    return {**result, "halting": [dict(zip(names, row)) for row in zip(steps, right, spent)]}


def draw_thought_curve(curves: dict[str, dict[str, Any]], path: str | os.PathLike) -> Path:
    """Accuracy against ACT steps (one line per number of attempts) and against the cost; a row per checkpoint."""
    figure, axes = panels(9.5, 3.6 * len(curves), len(curves), 2, sharey="row")
    for row, (name, curve) in zip(axes, curves.items()):
        shown = [k for k in curve["attempts"] if k & (k - 1) == 0 or k == curve["attempts"][-1]]
        for colour, k in zip([c for c in PALETTE if c != "#F0E442"], shown):
            accuracy = 100 * np.array(curve["exact_accuracy"][k - 1])
            band = np.array([wilson(round(a * curve["n"] / 100), curve["n"]) for a in accuracy])
            style = {"ms": 3, "color": colour, "label": "1 attempt" if k == 1 else f"{k} attempts"}
            row[0].plot(curve["steps"], accuracy, "o-", **style)
            row[0].fill_between(curve["steps"], 100 * band[:, 0], 100 * band[:, 1], color=colour, alpha=0.15, lw=0)
            row[1].plot(curve["mean_act_steps"][k - 1], accuracy, "o-", **style)
        halting = np.array([(r["mean_act_steps"], 100 * r["exact_accuracy"]) for r in curve["halting"]]).T
        row[1].plot(*halting, "k:", lw=1.2, label="1 attempt, halting by q")
        row[1].legend(frameon=False, fontsize=8)
        for ax, what in zip(row, ("ACT steps per attempt", "ACT steps spent per puzzle (mean)")):
            ax.set_xscale("log", base=2)
            ax.set_xlabel(what)
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{name}\nexact (%), n = {curve['n']}")
    return save(figure, path, tight=True)


def draw_calibration(numbers: dict[str, Any], path: str | os.PathLike, title: str = "") -> Path:
    """Share of right answers against sigmoid(q_halt), with intervals, over a histogram of the confidence."""
    bins = numbers["bins"]
    x, y, n, left, right = ([row[key] for row in bins] for key in ("confidence", "accuracy", "n", "low", "high"))
    low, high = np.array([row["ci95"] for row in bins]).reshape(-1, 2).T
    figure, ((top,), (bottom,)) = panels(4.6, 5.2, 2, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], "--", color="#999999", lw=1, label="perfectly calibrated")
    errors = np.maximum(0, [y - low, high - y])
    top.errorbar(x, y, errors, fmt="o-", color="#D55E00", ms=4, lw=1.2, capsize=2, label="this model, 95 % interval")
    top.set(ylabel="share exactly right", ylim=(-0.02, 1.02))
    top.legend(frameon=False, fontsize=8, loc="upper left")
    error = f"calibration error {numbers['expected_calibration_error']:.3f}"
    top.set_title(" · ".join(filter(None, (title, error))), fontsize=10)
    edges = np.array([left, right])
    bottom.bar(edges.mean(0), n, 0.92 * (edges[1] - edges[0]), color="#56B4E9")
    bottom.set(yscale="symlog", ylabel="puzzles", xlabel="confidence = sigmoid(q_halt)")
    for ax in (top, bottom):
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return save(figure, path, tight=True)
