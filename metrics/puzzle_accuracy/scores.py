"""The numbers of `puzzle_accuracy`: numpy alone, so that training and evaluation use them without `evaluate`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054
IGNORED = (-100, 0)  # the loss's ignore_index, and PAD: label cells that do not count
SUDOKU_EDGES = (0, 1, 10, 20, 50)  # guesses of the tdoku solver
MAZE_EDGES = (0, 10, 20, 30, 40, 60, 80, 110, 112, 115, 120)  # moves of a shortest path; Maze-Hard begins at 110


def wilson(successes: int, n: int, z: float = Z95) -> list[float]:
    """Wilson's interval [low, high] of a proportion; [0, 1] when nothing was observed."""
    if n == 0:
        return [0.0, 1.0]
    p, z2 = successes / n, z * z
    middle, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Exactly 0 and 1 at the ends, where rounding would leave 1e-17 beside them.
    low = 0.0 if successes == 0 else (middle - half) / (1 + z2 / n)
    return [low, 1.0 if successes == n else (middle + half) / (1 + z2 / n)]


def ratio_interval(parts: np.ndarray, wholes: np.ndarray, z: float = Z95) -> list[float]:
    """Normal interval [low, high] of sum(parts) / sum(wholes), one of each per puzzle: cells are not independent.

    The standard error is that of the ratio estimator for clusters of unequal size (Cochran, Sampling Techniques, 6.4).
    """
    n = len(parts)
    if n < 2:
        return [0.0, 1.0]
    ratio = float(parts.sum() / wholes.sum())
    if ratio in (0.0, 1.0):  # all alike: no spread to go by, so as if a puzzle were one trial
        return wilson(round(n * ratio), n, z)
    spread = math.sqrt(n / (n - 1) * float(((parts - ratio * wholes) ** 2).sum()))
    half = z * spread / float(wholes.sum())
    return [max(0.0, ratio - half), min(1.0, ratio + half)]


def score(
    predictions: np.ndarray,
    references: np.ndarray,
    *,
    inputs: np.ndarray | None = None,
    blank_token: int | None = None,
    valid: np.ndarray | None = None,
    rating: np.ndarray | None = None,
    edges: Sequence[int] = SUDOKU_EDGES,
    ignored: Sequence[int] = IGNORED,
) -> dict[str, Any]:
    """Accuracies of N answers with 95 % intervals.

    Args:
        predictions, references: (N, S) tokens; reference cells in `ignored` do not count.
        inputs: (N, S) puzzles; with blank_token also the accuracy of the cells that were left open.
        valid: (N,) bool, the rules' verdict. rating: (N,); with it one row per bucket that starts at an edge.

    Returns:
        exact_accuracy (every counted cell right), cell_accuracy (share of all counted cells), and where they can be
        told blank_cell_accuracy, valid_accuracy, by_rating; each with `…_ci95` [low, high]; n, the puzzles with a
        label, of which the exact accuracy is (the valid ones are counted among all).

    Raises:
        ValueError: shapes that do not fit.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.ndim != 2 or predictions.shape != references.shape:
        raise ValueError(
            f"predictions and references must be equal in shape, (puzzles, cells); got {predictions.shape} and "
            f"{references.shape}."
        )
    n = len(references)
    counted = ~np.isin(references, np.asarray(ignored))
    right = (predictions == references) & counted
    exact = (right | ~counted).all(-1)
    labelled = counted.any(-1)  # a puzzle without a label is neither right nor wrong
    of, hits = int(labelled.sum()), int(exact[labelled].sum())
    result: dict[str, Any] = {"n": of, "exact_accuracy": hits / of if of else 0.0}
    result["exact_accuracy_ci95"] = wilson(hits, of)
    result |= _cells("cell_accuracy", right, counted)
    if inputs is not None and blank_token is not None:
        if np.shape(inputs) != references.shape:
            raise ValueError(f"inputs must be {references.shape} as the references, got {np.shape(inputs)}.")
        open_cells = counted & (np.asarray(inputs) == blank_token)
        result |= _cells("blank_cell_accuracy", right & open_cells, open_cells)
    if valid is not None:
        valid = _column("valid", valid, n).astype(bool)
        result["valid_accuracy"] = float(valid.mean()) if n else 0.0
        result["valid_accuracy_ci95"] = wilson(int(valid.sum()), n)
    if rating is not None:
        rating = _column("rating", rating, n)
        if rating.dtype.kind not in "biuf" or not np.isfinite(rating).all():
            raise ValueError(f"rating must be finite numbers, one per puzzle; got {rating.dtype}, {rating[:3]} ...")
        result["by_rating"] = by_bucket(rating[labelled], exact[labelled], edges)
    return result


def _column(name: str, values: Any, n: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n,):
        raise ValueError(f"{name} must be ({n},), one value per puzzle; got {values.shape}.")
    return values


def _cells(name: str, right: np.ndarray, counted: np.ndarray) -> dict[str, Any]:
    has = counted.any(-1)
    interval = ratio_interval(right[has].sum(-1), counted[has].sum(-1))
    return {name: float(right.sum() / max(counted.sum(), 1)), f"{name}_ci95": interval}


def by_bucket(rating: np.ndarray, exact: np.ndarray, edges: Sequence[int]) -> list[dict[str, Any]]:
    """Exact accuracy per bucket of the rating, [edge, next edge); empty buckets are left out.

    Puzzles with the rating -1 have none: they come last, as "unrated".
    """
    unrated = rating == -1
    buckets = {}
    for low, high in zip(edges, [*edges[1:], np.inf]):
        label = f"{low}+" if high == np.inf else str(low) if high == low + 1 else f"{low}-{high - 1}"
        buckets[label] = (rating < high) & ((rating >= low) | (low == edges[0])) & ~unrated
    rows = []
    for label, inside in {**buckets, "unrated": unrated}.items():
        if n := int(inside.sum()):
            hits = int(exact[inside].sum())
            rows.append({"rating": label, "n": n, "exact_accuracy": hits / n, "ci95": wilson(hits, n)})
    return rows


def calibration(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """How far sigmoid(q_halt) can be trusted: per bin of confidence its mean and the share of right answers.

    Returns:
        bins (low, high, n, confidence, accuracy, ci95; empty ones are left out), expected_calibration_error,
        brier_score, and of the answers with confidence above 1/2 ("claimed"): their share and how many are right.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise ValueError(f"confidence and correct must be (N,), got {confidence.shape} and {correct.shape}.")
    n = len(correct)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for b in range(bins):
        inside = index == b
        if count := int(inside.sum()):
            mean, hits = float(confidence[inside].mean()), int(correct[inside].sum())
            error += count / n * abs(hits / count - mean)
            row = {"low": b / bins, "high": (b + 1) / bins, "n": count, "confidence": mean}
            rows.append({**row, "accuracy": hits / count, "ci95": wilson(hits, count)})
    claimed = confidence > 0.5
    return {
        "bins": rows,
        "expected_calibration_error": error,
        "brier_score": float(((confidence - correct) ** 2).mean()) if n else 0.0,
        "claimed": float(claimed.mean()) if n else 0.0,
        "claimed_and_right": float(correct[claimed].mean()) if claimed.any() else None,
    }
