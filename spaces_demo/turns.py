"""Fair turns at the model: one job at a time, and visitors take turns, not their clicks."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from itertools import zip_longest

MAX_WAITING = 64  # jobs of all visitors together
MAX_PER_VISITOR = 4  # a page sends one at a time; programs may line up a few


class Busy(ValueError):
    """Too many jobs wait; the message is for the visitor."""


class Turns:
    """Round robin over visitors: ten jobs of one wait behind a single job of another, sent after the first of the ten.

        async for place in turns.wait("visitor"):   # 3, 2, 1: a place in line, then the turn is ours
            ...
        turns.release()                             # whatever became of the work

    All methods run on one event loop.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self.max_waiting = max_waiting
        self.lines: OrderedDict[str, deque[asyncio.Future]] = OrderedDict()
        self.busy = False

    def waiting(self) -> list[asyncio.Future]:
        """All waiting jobs in the order in which they will be served."""
        return [turn for places in zip_longest(*self.lines.values()) for turn in places if turn is not None]

    async def wait(self, visitor: str, every: float = 0.5, limited: bool = True) -> AsyncIterator[int]:
        """Yield the place in line (1 = next) whenever it may have changed; ends when it is this job's turn.

        limited: refuse where too many wait.

        Raises:
            Busy: the line is full, or this visitor already has enough jobs in it.
        """
        if not self.busy and not self.lines:
            self.busy = True
            return
        if limited and len(self.waiting()) >= self.max_waiting:
            raise Busy(f"{self.max_waiting} puzzles are waiting already. Please try again in a minute.")
        if limited and len(self.lines.get(visitor, ())) >= MAX_PER_VISITOR:
            raise Busy(f"You have {MAX_PER_VISITOR} puzzles in line already. Please wait for one of them.")
        turn: asyncio.Future = asyncio.get_running_loop().create_future()
        self.lines.setdefault(visitor, deque()).append(turn)
        try:
            while not turn.done():
                yield self.waiting().index(turn) + 1
                await asyncio.wait([turn], timeout=every)
        except (asyncio.CancelledError, GeneratorExit):
            if turn.done():
                self.release()  # the turn came and nobody is here to take it
            else:
                self.lines[visitor].remove(turn)
                if not self.lines[visitor]:
                    del self.lines[visitor]
            raise

    def step_aside(self, visitor: str) -> AsyncIterator[int]:
        """Give the turn to those who wait, if any, and wait for it anew.

        A caller who leaves while it waits has no turn to release.
        """
        self.release()
        return self.wait(visitor, limited=False)

    def release(self) -> None:
        """End of a turn: the next one has it."""
        assert self.busy, "release() without a turn"
        if not self.lines:
            self.busy = False
            return
        visitor, line = self.lines.popitem(last=False)
        turn = line.popleft()
        if line:
            self.lines[visitor] = line  # to the end: the others come first
        turn.set_result(None)
