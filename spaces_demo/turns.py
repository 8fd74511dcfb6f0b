"""Fair turns at the model: one job at a time, and visitors take turns, not their clicks."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import aclosing

MAX_WAITING = 64  # jobs of all visitors together
MAX_PER_VISITOR = 4  # a page sends one at a time; programs may line up a few


class Busy(ValueError):
    """Too many jobs wait; the message is for the visitor."""


class Turns:
    """Round robin over visitors.

    A visitor who sends ten jobs waits behind one who sends a single job after the first of the ten:

        async for place in turns.wait("visitor"):   # 3, 2, 1: a place in line, then the turn is ours
            ...
        try:
            work()
        finally:
            turns.release()

    All methods run on one event loop; `release` may come from any thread.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, max_per_visitor: int = MAX_PER_VISITOR) -> None:
        self.max_waiting, self.max_per_visitor = max_waiting, max_per_visitor
        self.lines: OrderedDict[str, deque[asyncio.Future]] = OrderedDict()
        self.busy = False
        self.loop: asyncio.AbstractEventLoop | None = None

    def waiting(self) -> list[asyncio.Future]:
        """All waiting jobs in the order in which they will be served."""
        lines, order = [list(line) for line in self.lines.values()], []
        for depth in range(max(map(len, lines), default=0)):
            order += [line[depth] for line in lines if len(line) > depth]
        return order

    async def wait(self, visitor: str, every: float = 0.5, limited: bool = True) -> AsyncIterator[int]:
        """Yield the place in line (1 = next) whenever it may have changed; ends when it is this job's turn.

        limited: refuse where too many wait.

        Raises:
            Busy: the line is full, or this visitor already has enough jobs in it.
        """
        self.loop = asyncio.get_running_loop()
        if not self.busy and not self.lines:
            self.busy = True
            return
        if limited and len(self.waiting()) >= self.max_waiting:
            raise Busy(f"{self.max_waiting} puzzles are waiting already. Please try again in a minute.")
        if limited and len(self.lines.get(visitor, ())) >= self.max_per_visitor:
            raise Busy(f"You have {self.max_per_visitor} puzzles in line already. Please wait for one of them.")
        turn: asyncio.Future = self.loop.create_future()
        self.lines.setdefault(visitor, deque()).append(turn)
        try:
            while not turn.done():
                yield self.waiting().index(turn) + 1
                await asyncio.wait([turn], timeout=every)
        except (asyncio.CancelledError, GeneratorExit):
            if turn.done():
                self._next()  # the turn came and nobody is here to take it
            else:
                self._leave(visitor, turn)
            raise

    async def step_aside(self, visitor: str) -> AsyncIterator[int]:
        """Give the turn to those who wait and wait for it anew; ends at once where nobody waits.

        A caller who leaves while it waits has no turn to release.
        """
        if self.lines:
            self._next()
            async with aclosing(self.wait(visitor, limited=False)) as places:
                async for place in places:
                    yield place

    def release(self) -> None:
        """End of a turn."""
        assert self.loop is not None and self.busy, "release() without a turn"
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._next)

    def _next(self) -> None:
        if not self.lines:
            self.busy = False
            return
        visitor, line = self.lines.popitem(last=False)
        turn = line.popleft()
        if line:
            self.lines[visitor] = line  # to the end: the others come first
        turn.set_result(None)

    def _leave(self, visitor: str, turn: asyncio.Future) -> None:
        line = self.lines.get(visitor)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self.lines[visitor]
