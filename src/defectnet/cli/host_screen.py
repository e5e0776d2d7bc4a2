"""What ``defectnet host`` shows.

Apart from its commands, because their parser imports all that stands under TYPE_CHECKING beside them, and help would
wait for torch.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress as Bar
    from rich.table import Table

    from defectnet.crystal.make import Progress
    from defectnet.crystal.pack import HostPack
    from defectnet.crystal.spectra import DopedSpectrum


def load(pack: str, revision: str | None) -> HostPack:
    """Load a pack; see `HostPack.load`."""
    from defectnet.crystal.pack import HostPack

    return HostPack.load(pack, revision=revision)


def say_made(pack: HostPack, folder: Path) -> None:
    """Print what a pack holds, and what failed."""
    print(f"{folder}: {len(pack.substitutions)} substitutions in {pack.host.formula}")
    for failure in pack.failures:
        print(f"  {failure.dopant}@{pack.replaced(failure.site)} on site {failure.site} failed: {failure.reason}")


class Watch:
    """A progress bar on stderr, or lines where that is no terminal; and once an estimate of what is left."""

    def __init__(self, total: int, workers: int) -> None:
        from defectnet.simulate.runner import progress_bar

        self._bar = progress_bar()
        self._task = self._bar.add_task("host", total=total)
        self._total, self._workers, self._start = total, workers, time.monotonic()
        self._made = 0
        self._done: dict[str, int] = {}

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Take in that a substitution is done."""
        self._made += 1
        self._done[progress.host] = progress.done
        done = sum(self._done.values())
        self._bar.update(self._task, completed=done, description=f"{progress.host}: {progress.last}")
        left = (time.monotonic() - self._start) / self._made * max(self._total - done, 0)
        if self._made == max(2, self._workers):
            self._bar.console.print(f"about {_duration(left)} left", highlight=False)
        if not self._bar.console.is_terminal:
            print(f"{progress.host}: {progress.done} of {progress.total}, {progress.last}", file=sys.stderr, flush=True)


class Steps:
    """Bars on stderr for a question: one for substitutions, if any are computed, then one for each further step."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._watch: Watch | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def made(self, progress: Progress) -> None:
        """Take in that a substitution is done."""
        if self._watch is None:
            self._watch = self._stack.enter_context(Watch(progress.total, 1))
        self._watch(progress)

    def report(self, what: str, done: int, total: int | None) -> None:
        """Take in how far a step is."""
        from rich.console import Console
        from rich.progress import Progress as Bars

        if self._bar is None:
            self._stack.close()  # the bar of substitutions: two at once do not go together
            self._bar = self._stack.enter_context(Bars(console=Console(stderr=True), transient=True))
            self._bar.add_task(what)
        self._bar.update(self._bar.task_ids[0], description=what, completed=done, total=total)


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"


def substitutions(told: dict[str, Any]) -> Table:
    """Return the table of what `describe` tells."""
    from rich.table import Table

    table = Table("substitution", "site", box=None, pad_edge=False, header_style="bold")
    for title in ("volume", "energy", "off its site", "largest change"):
        table.add_column(title, justify="right")
    for one in told["substitutions"]:
        table.add_row(
            f"{one['dopant']}@{one['replaces']}",
            str(one["site"]),
            f"{one['volume_percent']:+.2f} %",
            f"{one['energy_ev']:.3f} eV",
            f"{one['displacement_angstrom']:.2f} A" if one["off_centre"] else "-",
            f"{one['largest_change']:.2f} eV/A^2",
        )
    return table


def about(found: DopedSpectrum, seed: int) -> list[str]:
    """Say where spectra come from, in lines that declare nothing to a reader of tables."""
    reached = ", ".join(f"{symbol} {share:.4f}" for symbol, share in found.concentrations.items()) or "no dopants"
    width = "not broadened" if found.fwhm_mev is None else f"Gaussian of {found.fwhm_mev:g} meV FWHM"
    if found.method == "lanczos":
        width += f", estimated; a cell's statistical error is {found.sampling_error:.2%} of the area"
    return [
        f"made from the host pack of {found.host} ({found.formula}), {found.potential} {found.potential_sha256[:12]}",
        f"wished {found.wished}; reached {reached}",
        f"{len(found.cells)} cells of {found.atoms} atoms from seed {seed}, {found.left_out} left out as not stable",
        f"edge {found.edge_mev:.3f} meV; {width}",
    ]
