"""What attempts at a puzzle give and share: the answers, the symmetric views of a puzzle, the givens that it keeps."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .processing_air import GridTask, Symmetry, Verdict


@dataclass
class Node:
    """A node of a search by pins. A tree is a list of them in the order of judging; its first is the puzzle as given.

    parent: place in the tree, -1 at a root; further roots begin anew. cell, token: the pin that it adds to those of
    its parent (-1 and 0 at a root): a digit, or a wall. cost: by which the queue is ordered; of a Sudoku the sum of
    -log belief and a constant along its pins, and more where the answers on the way look lost (`AirConfig.q_lost`).
    accepted: what the rules say of `answer` (S,) uint8, in which clues are kept. act_steps: computed for it.
    q_halt_logit: of its answer. view: the symmetric view in which the model saw it; all else is in the puzzle's own.
    """

    parent: int
    cell: int
    token: int
    cost: float
    accepted: bool
    act_steps: int
    q_halt_logit: float
    answer: np.ndarray
    view: int = 0


def pins_of(tree: list[Node], at: int) -> list[tuple[int, int]]:
    """(cell, token) of each pin of a node, in the order of guessing."""
    found = []
    while tree[at].parent >= 0:
        found.append((tree[at].cell, tree[at].token))
        at = tree[at].parent
    return found[::-1]


@dataclass
class Answers:
    """What `solve_puzzles` found for N puzzles of S cells; numpy arrays.

    tokens (N, S) uint8: the chosen answers. verdict: the rules' view of them, fields (N,) bool. q_halt_logits (N,):
    of the chosen answers; confidence is their sigmoid. act_steps (N,) int64: spent on the puzzle, over all attempts.
    attempts (N,): views run, or nodes judged. view (N,): index of the chosen one (0 = the puzzle as given, first
    model).
    rollout: None, or (z_h, z_l, updates), decoded in the puzzle's own orientation, (N, U, S) uint8, givens as in
    the answers.
    pins: of a search, else None: N lists of (cell, token), the guesses that led to the answer, in their order.
    trees: of a search with return_rollout: N lists of `Node`. stats: those of `AirModel.solve`; slot_steps also count
    nodes that were computed ahead in vain; "interrupted" where Ctrl-C ended it.
    """

    tokens: np.ndarray
    verdict: Verdict
    q_halt_logits: np.ndarray
    act_steps: np.ndarray
    attempts: np.ndarray
    view: np.ndarray
    rollout: tuple[np.ndarray, np.ndarray, list[str]] | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    pins: list[list[tuple[int, int]]] | None = None
    trees: list[list[Node]] | None = None

    @property
    def confidence(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.q_halt_logits.astype(np.float64)))


def symmetric_views(task: GridTask, attempts: int, seed: int = 0) -> Symmetry:
    """Up to `attempts` different symmetries of the task, the identity first; fewer where the group is smaller."""
    cells = np.arange(task.seq_len)[None]
    tokens = np.arange(task.vocab_size, dtype=np.uint8)[None]
    if attempts > 1:
        # Enough draws to meet each of a maze's 8 maps; among a Sudoku's trillions two hardly ever agree.
        drawn = task.random_symmetries(np.random.default_rng(seed), max(256, 2 * attempts))
        both = np.concatenate([np.concatenate([cells, drawn.cells]), np.concatenate([tokens, drawn.tokens])], axis=1)
        first = np.sort(np.unique(both, axis=0, return_index=True)[1])[:attempts]
        cells, tokens = both[first, : task.seq_len], both[first, task.seq_len :].astype(np.uint8)
    if attempts > len(cells):  # the same again, with the tokens' other meanings
        cells = np.tile(cells, (len(task.token_maps), 1))[:attempts]
        tokens = np.concatenate([names[tokens] for names in task.token_maps])[:attempts]
    return Symmetry(cells, tokens)


def keep_givens(task: GridTask, puzzles: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Answers with what the puzzles gave, both (..., S)."""
    return np.where(task._given(puzzles), puzzles, answers).astype(answers.dtype)
