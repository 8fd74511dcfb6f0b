"""The classical searches: distances in mazes, and how many solutions a Sudoku has.

Small and in plain Python or numpy, because this file travels to the Hub. Data sets are built with the compiled ones of
`datasets_builders`.
"""

from __future__ import annotations

import numpy as np


def flood(passable: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Breadth-first distances for N grids at once: passable, source bool (N, H, W) -> int32 (N, H * W), -1 = never.

    All grids grow by one move per round as flat bool arrays with a closed rim, so a round is a few SIMD passes.
    """
    n, height, width = passable.shape
    rim = ((0, 0), (1, 1), (1, 1))
    open_, front = np.pad(passable, rim).reshape(-1), np.pad(source, rim).reshape(-1)
    distance = np.where(front, 0, -1).astype(np.int32)
    open_ = open_ & ~front
    step = width + 2
    rounds = 0
    while front.any():
        rounds += 1
        near = np.zeros_like(front)
        for k in (1, step):
            near[k:] |= front[:-k]
            near[:-k] |= front[k:]
        front = near & open_
        open_ ^= front
        distance[front] = rounds
    return distance.reshape(n, height + 2, width + 2)[:, 1:-1, 1:-1].reshape(n, height * width)


def count_solutions(can: list[int], peers: list[list[int]], units: list[list[int]], effort: int) -> int | str | None:
    """How many ways there are to fill a Sudoku: 0, 1, "several", or None if `effort` guesses did not tell.

    Args:
        can: (S) what each cell may hold, a bit per digit. peers: (S, P) cells that hold other digits than a cell.
        units: (U, n) cells that hold each of n digits once.
    """
    full = (1 << len(units[0])) - 1
    found, stack = 0, [(can, [cell for cell, bits in enumerate(can) if not bits & bits - 1])]
    while stack:
        can, fixed = stack.pop()
        if not _narrow(can, fixed, peers, units, full):
            continue
        open_cells = [cell for cell, bits in enumerate(can) if bits & bits - 1]
        if not open_cells:
            found += 1
            if found > 1:
                return "several"
            continue
        if (effort := effort - 1) < 0:
            return None
        cell = min(open_cells, key=lambda cell: can[cell].bit_count())
        left = can[cell]
        while left:
            can[cell] = left & -left
            left &= left - 1
            stack.append((can.copy(), [cell]))
    return found


def _narrow(can: list[int], fixed: list[int], peers: list[list[int]], units: list[list[int]], full: int) -> bool:
    """Singles, naked and hidden, until there are no more. False: some cell or digit has no place left.

    fixed: cells with one digit whose peers do not know of it yet.
    """
    while True:
        while fixed:
            cell = fixed.pop()
            bit = can[cell]
            for peer in peers[cell]:
                if can[peer] & bit:
                    can[peer] &= ~bit
                    if not can[peer]:
                        return False
                    if not can[peer] & can[peer] - 1:
                        fixed.append(peer)
        for unit in units:
            once = twice = 0
            for cell in unit:
                twice |= once & can[cell]
                once |= can[cell]
            if once != full:
                return False
            alone = once & ~twice
            for cell in unit if alone else ():
                if (bit := can[cell] & alone) and bit != can[cell]:
                    if bit & bit - 1:
                        return False
                    can[cell] = bit
                    fixed.append(cell)
            if fixed:
                break
        if not fixed:
            return True
