"""Evaluation: puzzles through `solve_puzzles`, by any number of processes, so that a killed run goes on.

    result = Evaluation(models, puzzles, parts_folder, attempts=8).run()      # the JSON of scripts/evaluate.py
    curve = thought_curve(model, puzzles, max_act_steps=64, attempts=8)       # accuracy against ACT steps and attempts

Every process takes each W-th puzzle that no part holds yet, and writes what it has finished as a part every half
minute. Parts belong to one combination of weights, data and settings; the number of processes may change.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from air_model.analysis.common import add_model
from air_model.analysis.figures import PALETTE, new_figure, save
from air_model.answers_air import Answers, symmetric_views
from air_model.attempts_air import solve_puzzles
from air_model.datasets_builders.loading import PuzzleSet
from air_model.metrics.puzzle_accuracy.scores import MAZE_EDGES, SUDOKU_EDGES, calibration, score, wilson
from air_model.modeling_air import AirModel
from air_model.processing_air import Symmetry
from air_model.records import whole
from air_model.solving_air import AirUpdate

SAVE_SECONDS = 30.0
COLUMNS = ("row", "tokens", "q_halt_logits", "act_steps", "attempts", "view", "complete", "consistent", "valid")


def fingerprint(models: Sequence[AirModel], puzzles: PuzzleSet, settings: dict[str, Any]) -> str:
    """Hash of everything that decides the answers."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(puzzles.fingerprint.encode())
    for model in models:
        add_model(digest, model)
    return digest.hexdigest()[:16]


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
        save_seconds: float = SAVE_SECONDS,
        **options: Any,
    ) -> None:
        self.models, self.puzzles, self.options = list(models), puzzles, options
        self.rank, self.world, self.wait = rank, world, wait
        self.progress, self.save_seconds = progress, save_seconds
        # batch_size changes speed, not answers.
        deciding = {k: v for k, v in options.items() if k != "batch_size"}
        self.folder = Path(folder) / fingerprint(self.models, puzzles, deciding)

    def run(self) -> None:
        """Solve this process's share of what no part holds yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        total = len(self.puzzles)
        done = np.zeros(total, bool)
        done[self.read()["row"]] = True
        rows = np.flatnonzero(~done)[self.rank :: self.world]
        # Nobody writes before everybody has read, or the shares would not fit together.
        self.wait()
        mine = self.puzzles.select(rows)
        pending: list[tuple[np.ndarray, Answers]] = []
        exact = seen = 0
        since = last = time.perf_counter()
        shown = (total, total - len(rows)) if self.world == 1 else (len(rows), 0)
        bar = tqdm(total=shown[0], initial=shown[1], unit="puzzle", disable=not self.progress, desc="evaluate")

        def write() -> None:
            nonlocal last, pending
            now = time.perf_counter()
            if pending:
                self.write(pending, (now - last) / self.world)
            last, pending = now, []

        def keep(at: np.ndarray, answers: Answers) -> None:
            nonlocal exact, seen
            pending.append((rows[at], answers))
            exact += int((answers.tokens == mine.labels[at]).all(-1).sum())
            seen += len(at)
            bar.set_postfix_str(f"{exact / seen:.1%} exact", refresh=False)
            bar.update(len(at))
            if time.perf_counter() - last > self.save_seconds:
                write()

        if not len(rows):
            return
        ids = mine.puzzle_ids if self.models[0].config.num_puzzle_identifiers > 1 else None
        given = {"check": False, "puzzle_ids": ids, "on_answers": keep, **self.options}
        with bar:
            answers = solve_puzzles(self.models, self.puzzles.task, mine.inputs, **given)
        write()
        self.stats = {**answers.stats, "seconds": time.perf_counter() - since}

    def write(self, pending: list[tuple[np.ndarray, Answers]], seconds: float) -> None:
        """One part: an .npz that appears whole."""
        columns = {"row": np.concatenate([row for row, _ in pending])}
        for name in COLUMNS[1:6]:
            columns[name] = np.concatenate([getattr(answers, name) for _, answers in pending])
        for name in COLUMNS[6:]:
            columns[name] = np.concatenate([getattr(answers.verdict, name) for _, answers in pending])
        part = self.folder / f"part-{self.rank}-{uuid.uuid4().hex}.npz"
        with whole(part) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **columns, seconds=np.float64(seconds))

    def read(self) -> dict[str, np.ndarray]:
        """All parts together, one row per puzzle, in the order of the puzzles; and the seconds they took."""
        size = self.puzzles.inputs.shape[1]
        empty = {"row": np.zeros(0, np.int64), "tokens": np.zeros((0, size), np.uint8)}
        empty |= {name: np.zeros(0) for name in COLUMNS[2:]}
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
        task, labels = puzzles.task, puzzles.labels
        known = {"inputs": puzzles.inputs, "blank_token": task.blank_token, "rating": puzzles.rating}
        edges = MAZE_EDGES if task.name == "maze" else SUDOKU_EDGES
        numbers = score(table["tokens"], labels, **known, valid=table["valid"].astype(bool), edges=edges)
        labelled = (labels != 0).any(-1)  # nobody knows whether the others are right
        exact = ((table["tokens"] == labels) | (labels == 0)).all(-1)
        confidence = 1 / (1 + np.exp(-table["q_halt_logits"].astype(np.float64)))
        seconds = float(table["seconds"])
        return {
            **numbers,
            "mean_act_steps": float(table["act_steps"].mean()),
            "mean_attempts": float(table["attempts"].mean()),
            "puzzles_per_second": len(puzzles) / seconds if seconds else None,
            "seconds": seconds,
            "calibration": calibration(confidence[labelled], exact[labelled]),
        }

    def clear(self) -> None:
        """Remove the parts, once the result is written."""
        for path in self.folder.glob("*"):
            path.unlink()
        for folder in (self.folder, self.folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


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
    task, n = puzzles.task, len(puzzles)
    views = symmetric_views(task, attempts, seed)
    steps = sorted({*(2**i for i in range(max_act_steps.bit_length()) if 2**i <= max_act_steps), max_act_steps})
    at = {step: i for i, step in enumerate(steps)}
    shape = (len(views.cells), len(steps), n)
    exact, valid, q = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.float32)
    halted_at, halted_right = np.full(n, max_act_steps + 1), np.zeros(n, bool)  # the puzzle as given, under halt="q"
    back, last = views.inverse(), len(model.config.schedule) - 1

    for v in tqdm(range(len(views.cells)), desc="views", disable=not progress):
        view = Symmetry(views.cells[v], views.tokens[v])
        home = Symmetry(back.cells[v], back.tokens[v])

        def look(update: AirUpdate, z_h: Tensor, z_l: Tensor, v: int = v, home: Symmetry = home) -> None:
            if update.index != last:
                return
            rows, step = update.rows.cpu().numpy(), int(update.steps[0]) + 1  # all puzzles are at one step: halt="max"
            q_halt, q_continue = model.q_head(z_h[:, 0]).unbind(-1)
            answer = home.apply(model.decode_state(z_h).argmax(-1).cpu().numpy().astype(np.uint8))
            right = (answer == puzzles.labels[rows]).all(-1)
            if v == 0:
                stops = model.halts(q_halt, q_continue).cpu().numpy() & (halted_at[rows] > max_act_steps)
                halted_at[rows[stops]], halted_right[rows[stops]] = step, right[stops]
            if step in at:
                exact[v, at[step], rows] = right
                valid[v, at[step], rows] = task.verdicts(puzzles.inputs[rows], answer).valid
                q[v, at[step], rows] = q_halt.float().cpu().numpy()

        options = {"max_act_steps": max_act_steps, "batch_size": batch_size, "return_logits": False}
        model.solve(torch.from_numpy(view.apply(puzzles.inputs)), halt="max", hook=look, **options)

    result: dict[str, Any] = {"n": n, "steps": steps, "attempts": list(range(1, shape[0] + 1))}
    tables: dict[str, list] = {"exact_accuracy": [], "valid_accuracy": [], "mean_act_steps": []}
    everyone = np.arange(n)
    for k in result["attempts"]:
        accepted = valid[:k].any(0) if task.name != "grid" else np.zeros(shape[1:], bool)
        first = valid[:k].argmax(0)
        choice = np.where(accepted, first, q[:k].argmax(0))  # (steps, N)
        spent = np.where(accepted, first + 1, k) * np.array(steps)[:, None]
        pick = [(choice[s], s, everyone) for s in range(len(steps))]
        tables["exact_accuracy"].append([float(exact[p].mean()) for p in pick])
        tables["valid_accuracy"].append([float(valid[p].mean()) for p in pick])
        tables["mean_act_steps"].append([float(row.mean()) for row in spent])
    result |= tables
    limits = np.array(steps)[:, None]
    right = np.where(halted_at <= limits, halted_right, exact[0]).mean(1)
    spent = np.minimum(halted_at, limits).mean(1)
    result["halting"] = [
        {"max_act_steps": limit, "exact_accuracy": float(r), "mean_act_steps": float(used)}
        for limit, r, used in zip(steps, right, spent)
    ]
    return result


def draw_thought_curve(curves: dict[str, dict[str, Any]], path: str | os.PathLike) -> Path:
    """Accuracy against ACT steps (one line per number of attempts) and against the cost; a row per checkpoint."""
    figure = new_figure(9.5, 3.6 * len(curves))
    axes = figure.subplots(len(curves), 2, squeeze=False, sharey="row")
    for row, (name, curve) in zip(axes, curves.items()):
        shown = [k for k in curve["attempts"] if k & (k - 1) == 0 or k == curve["attempts"][-1]]
        for colour, k in zip([c for c in PALETTE if c != "#F0E442"], shown):
            accuracy = 100 * np.array(curve["exact_accuracy"][k - 1])
            band = np.array([wilson(round(a * curve["n"] / 100), curve["n"]) for a in accuracy])
            label = "1 attempt" if k == 1 else f"{k} attempts"
            row[0].plot(curve["steps"], accuracy, "o-", ms=3, color=colour, label=label)
            row[0].fill_between(curve["steps"], 100 * band[:, 0], 100 * band[:, 1], color=colour, alpha=0.15, lw=0)
            row[1].plot(curve["mean_act_steps"][k - 1], accuracy, "o-", ms=3, color=colour, label=label)
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
    x, y = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
    low, high = ([row["ci95"][side] for row in bins] for side in range(2))
    figure = new_figure(4.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    top.plot([0, 1], [0, 1], "--", color="#999999", lw=1, label="perfectly calibrated")
    errors = [np.maximum(0, np.subtract(y, low)), np.maximum(0, np.subtract(high, y))]
    top.errorbar(x, y, errors, fmt="o-", color="#D55E00", ms=4, lw=1.2, capsize=2, label="this model, 95 % interval")
    top.set_ylabel("share exactly right")
    top.set_ylim(-0.02, 1.02)
    top.legend(frameon=False, fontsize=8, loc="upper left")
    error = numbers["expected_calibration_error"]
    top.set_title(f"{title}{' · ' if title else ''}calibration error {error:.3f}", fontsize=10)
    width = bins[0]["high"] - bins[0]["low"] if bins else 0.1
    bottom.bar([(r["low"] + r["high"]) / 2 for r in bins], [r["n"] for r in bins], width * 0.92, color="#56B4E9")
    bottom.set_yscale("symlog")
    bottom.set_ylabel("puzzles")
    bottom.set_xlabel("confidence = sigmoid(q_halt)")
    for ax in (top, bottom):
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return save(figure, path, tight=True)
