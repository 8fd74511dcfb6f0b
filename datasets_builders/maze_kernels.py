"""Maze search compiled by numba: distances, the benchmark's label, and the generator's filter."""

from __future__ import annotations

import numba as nb
import numpy as np

from air_model.datasets_builders.threads import in_threads

WALL, SPACE, START, GOAL, PATH = 1, 2, 3, 4, 5


@nb.njit(cache=True)
def _flood(open_: np.ndarray, source: int, width: int, distance: np.ndarray, queue: np.ndarray) -> int:
    """Breadth-first distances on a rimmed flat grid; fills `distance`, returns the number of cells reached."""
    distance[:] = -1
    distance[source] = 0
    queue[0] = source
    head, tail = 0, 1
    while head < tail:
        here = queue[head]
        head += 1
        far = distance[here] + 1
        for step in (width, -1, 1, -width):
            near = here + step
            if open_[near] and distance[near] < 0:
                distance[near] = far
                queue[tail] = near
                tail += 1
    return tail


@nb.njit(cache=True, nogil=True)
def _label(mazes: np.ndarray, height: int, width: int, out: np.ndarray, bad: np.ndarray) -> None:
    wide = width + 2
    open_ = np.zeros((height + 2) * wide, np.bool_)
    distance = np.empty((height + 2) * wide, np.int32)
    queue = np.empty(height * width, np.int32)
    for i in range(len(mazes)):
        start = goal = -1
        for r in range(height):
            for c in range(width):
                token = mazes[i, r * width + c]
                at = (r + 1) * wide + c + 1
                open_[at] = token > WALL
                if token == START:
                    start = at
                elif token == GOAL:
                    goal = at
                out[i, r * width + c] = token
        if start < 0 or goal < 0:
            bad[i] = True
            continue
        _flood(open_, goal, wide, distance, queue)
        if distance[start] < 0:
            bad[i] = True
            continue
        here = start
        while distance[here] > 1:
            for step in (wide, -1, 1, -wide):  # down, left, right, up
                if distance[here + step] == distance[here] - 1:
                    here += step
                    break
            out[i, (here // wide - 1) * width + here % wide - 1] = PATH


def label(mazes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shortest paths by the Down, Left, Right, Up rule: uint8 (N, S) -> (N, S). Raises ValueError naming a bad row."""
    out = np.empty_like(mazes)
    bad = np.zeros(len(mazes), bool)
    in_threads(lambda rows: _label(mazes[rows], height, width, out[rows], bad[rows]), len(mazes))
    if bad.any():
        raise ValueError(f"Maze {np.flatnonzero(bad)[0] + 1} of {len(mazes)} has no path from S to G.")
    return out
