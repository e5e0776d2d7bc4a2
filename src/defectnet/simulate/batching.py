"""Cells of several threads evaluated in one call: what keeps an accelerator busy.

The relaxation of one cell is a chain of small steps. Many cells side by side, each in a thread of its own that runs the
same code as without, give the device larger pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Condition

from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import EnergyForcesStress
from defectnet.potentials.potential import ManyPotential

PATIENCE_SECONDS = 0.005
"""How long a cell waits for others that are at work elsewhere: longer than they differ, shorter than a call."""


@dataclass
class _Request:
    crystal: Crystal
    result: EnergyForcesStress | None = None
    error: Exception | None = None
    done: bool = False


@dataclass
class _Queue:
    waiting: list[_Request] = field(default_factory=list)
    busy: bool = False


class BatchedPotential:
    """A potential that evaluates the crystals of up to `batch` threads in one call.

    Args:
        potential: What evaluates them.
        batch: Most crystals in one call.
    """

    def __init__(self, potential: ManyPotential, batch: int) -> None:
        self.potential = potential
        self.batch = batch
        self.name, self.sha256, self.exact = potential.name, potential.sha256, potential.exact
        self.largest = 0
        self._queue = _Queue()
        self._changed = Condition()

    def check(self, crystal: Crystal) -> None:
        """See that the potential knows all elements."""
        self.potential.check(crystal)

    def force_constants(self, crystal: Crystal) -> ForceConstants:
        """Compute the second derivatives; one cell alone is a large piece of work."""
        return self.potential.force_constants(crystal)

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress, together with what other threads ask for meanwhile."""
        request = _Request(crystal)
        with self._changed:
            self._queue.waiting.append(request)
            self._changed.notify_all()
            self._changed.wait_for(lambda: request.done or self._full(), timeout=PATIENCE_SECONDS)
            while not request.done:
                if self._queue.busy:
                    self._changed.wait()
                    continue
                self._evaluate_some()
        if request.error is not None:
            raise request.error
        assert request.result is not None
        return request.result

    def _full(self) -> bool:
        return len(self._queue.waiting) >= self.batch and not self._queue.busy

    def _evaluate_some(self) -> None:
        """Evaluate the crystals that wait; the lock is free meanwhile, so that others can queue."""
        queue = self._queue
        mine, queue.waiting = queue.waiting[: self.batch], queue.waiting[self.batch :]
        self.largest = max(self.largest, len(mine))
        queue.busy = True
        self._changed.release()
        try:
            for request, result in zip(
                mine, self.potential.evaluate_many([request.crystal for request in mine]), strict=True
            ):
                request.result = result
        except Exception:
            self._evaluate_one_by_one(mine)
        finally:
            self._changed.acquire()
            queue.busy = False
            for request in mine:
                request.done = True
            self._changed.notify_all()

    def _evaluate_one_by_one(self, requests: list[_Request]) -> None:
        """One crystal is at fault: only its own thread shall hear of it."""
        for request in requests:
            try:
                request.result = self.potential.evaluate(request.crystal)
            except Exception as error:
                request.error = error
