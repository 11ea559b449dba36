"""Many cells over several workers: load is bounded, what a lost worker was at goes to others, nothing is kept twice."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from .arms import Cell
from .servers import Failed, Lost, Made

log = logging.getLogger(__name__)

TRIES = 2  # of a cell that fails
LOOK_AGAIN_SECONDS = 10  # whether a lost worker is there again


class Worker(Protocol):
    name: str

    async def run(self, prompt: dict) -> Made: ...

    async def answers(self) -> bool: ...


class Dispatch:
    """One run over a list of cells."""

    def __init__(
        self,
        cells: list[Cell],
        workers: list[Worker],
        prompt_of: Callable[[Cell], dict],
        keep: Callable[[Cell, Made], None],
        lanes: int,
    ):
        """`keep` gets each finished cell once; `lanes` is how many prompts a worker has at a time."""
        self.waiting, self.left = deque(cells), len(cells)
        self.workers, self.prompt_of, self.keep, self.lanes = workers, prompt_of, keep, lanes
        self.tries: Counter = Counter()
        self.failures: dict[Cell, str] = {}
        self.lost: dict[str, str] = {}

    async def run(self) -> dict[Cell, str]:
        """Make every cell; gives those that could not be made, with the reason.

        Raises:
            Refused: the workflow is not taken.
            Lost: no worker is left.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self.workers:
                    for _ in range(self.lanes):
                        group.create_task(self._lane(worker))
        except* Exception as errors:
            raise errors.exceptions[0] from None
        return self.failures

    async def _lane(self, worker: Worker) -> None:
        """Take one cell after the other until none is left anywhere: those of a lost worker may come back."""
        while self.left:
            if worker.name in self.lost:
                await self._return_of(worker)
            elif self.waiting:
                await self._make(worker, self.waiting.popleft())
            else:
                await asyncio.sleep(0.1)

    async def _make(self, worker: Worker, cell: Cell) -> None:
        try:
            made = await worker.run(self.prompt_of(cell))
        except Lost as error:
            self.waiting.appendleft(cell)
            self._is_lost(worker, str(error))
        except Failed as error:
            self.tries[cell] += 1
            if self.tries[cell] < TRIES:
                self.waiting.append(cell)
            else:
                self.failures[cell] = str(error)
                self.left -= 1
        else:
            self.keep(cell, made)
            self.left -= 1

    def _is_lost(self, worker: Worker, reason: str) -> None:
        """Raises Lost: it was the last one."""
        if worker.name not in self.lost:
            log.warning("REG: %s; its work goes to others.", reason)
        self.lost[worker.name] = reason
        if len(self.lost) == len(self.workers):
            raise Lost(
                f"REG: no server is left ({'; '.join(self.lost.values())}): start one and run the same command again."
            )

    async def _return_of(self, worker: Worker) -> None:
        for _ in range(LOOK_AGAIN_SECONDS * 10):
            if not self.left or worker.name not in self.lost:
                return
            await asyncio.sleep(0.1)
        if await worker.answers() and self.lost.pop(worker.name, None):
            log.warning("REG: %s is there again.", worker.name)
