"""The classical searches: distances and bottlenecks in mazes, and how many solutions a Sudoku has.

Small and in plain Python or numpy, because this file travels to the Hub. Data sets are built with the compiled ones of
`datasets_builders`.
"""

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


def bottlenecks(passable: np.ndarray, start: int, goal: int) -> np.ndarray:
    """The cells that every way between two cells passes, ends included: passable (H, W) bool -> (H * W,) bool.

    All cells where there is no way. Time grows with the number of cells alone.
    """
    height, width = passable.shape
    step = width + 2  # a closed rim spares every bounds check
    open_ = np.pad(passable, 1).reshape(-1).tolist()
    start, goal = ((cell // width + 1) * step + cell % width + 1 for cell in (start, goal))
    before, queue = {start: start}, [start]
    for cell in queue:
        for near in (cell + 1, cell - 1, cell + step, cell - step):
            if open_[near] and near not in before:
                before[near] = cell
                queue.append(near)
    if goal not in before:
        return np.ones(height * width, bool)
    way = [goal]
    while way[-1] != start:
        way.append(before[way[-1]])
    place = {cell: k for k, cell in enumerate(reversed(way))}
    # Along one way: how far ahead of each cell does one get beside it, starting anywhere before that cell?
    found, furthest, seen = np.zeros((height + 2) * step, bool), 0, set()
    for cell, k in place.items():
        found[cell] = furthest <= k
        stack = [cell]
        while stack:
            at = stack.pop()
            for near in (at + 1, at - 1, at + step, at - step):
                if near in place:
                    furthest = max(furthest, place[near])
                elif open_[near] and near not in seen:
                    seen.add(near)
                    stack.append(near)
    return found.reshape(height + 2, step)[1:-1, 1:-1].reshape(-1)


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
