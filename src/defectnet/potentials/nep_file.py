"""Neuroevolution potentials in the text format of GPUMD: reads NEP3 and NEP4, with or without ZBL; writes NEP4."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from defectnet.errors import SimulationError
from defectnet.files import replacing

_NEIGHBOURS_PER_VOLUME = 0.2
"""Atoms per cubic angstrom, above the density of diamond: what the header says of the largest number of neighbours."""

_FIX = "Use a NEP3 or NEP4 potential file (nep.txt) of GPUMD"


@dataclass(frozen=True)
class NEPParameters:
    """Everything that a NEP file says; K species, N neurons, Q descriptors.

    Attributes:
        name: Stem of the file's name.
        sha256: Of the file's bytes, in hex.
        species: (K,) atomic numbers in the file's order.
        cutoff_radial, cutoff_angular: Angstrom.
        zbl_inner, zbl_outer: Angstrom; both zero without ZBL.
        l_max: Highest degree of the three-body descriptors.
        with_4body, with_5body: Whether the invariants of higher order are used.
        w0: (K, N, Q), b0: (K, N), w1: (K, N), b1: () of the networks.
        c_radial: (K, K, n, k) and c_angular: (K, K, n, k) expansion coefficients (centre, neighbour).
        scaler: (Q,) descriptor scaling.
    """

    name: str
    sha256: str
    species: tuple[int, ...]
    cutoff_radial: float
    cutoff_angular: float
    zbl_inner: float
    zbl_outer: float
    l_max: int
    with_4body: bool
    with_5body: bool
    w0: Tensor
    b0: Tensor
    w1: Tensor
    b1: Tensor
    c_radial: Tensor
    c_angular: Tensor
    scaler: Tensor


def read_nep(path: str | Path) -> NEPParameters:
    """Read a NEP file.

    Raises:
        SimulationError: The file is missing, truncated, or of another kind of NEP.
    """
    path = Path(path)
    if not path.is_file():
        raise SimulationError(f"potential {path} does not exist", fix="Give the path of a file, or the name nep89")
    data = path.read_bytes()
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise SimulationError(f"potential {path} is no text file", fix=_FIX) from error
    return _Reader(path, lines).parameters(hashlib.sha256(data).hexdigest())


def write_nep(path: str | Path, parameters: NEPParameters) -> None:
    """Write a NEP4 file, with ten digits a number; `read_nep` and GPUMD read it.

    Raises:
        SimulationError: A parameter is NaN or infinite.
    """
    p = parameters
    nets = torch.cat([p.w0.flatten(1), p.b0, p.w1], dim=1)
    # the pair of species is fastest in the file
    expansion = [c.permute(2, 3, 0, 1).flatten() for c in (p.c_radial, p.c_angular)]
    numbers = torch.cat([nets.flatten(), p.b1.reshape(1), *expansion, p.scaler]).detach().cpu()
    if not bool(torch.isfinite(numbers).all()):
        raise SimulationError(
            f"potential {path}: a parameter is NaN or infinite", fix="Train again with a lower learning rate"
        )
    zbl = p.zbl_outer > 0
    (n_r, k_r), (n_a, k_a) = p.c_radial.shape[2:], p.c_angular.shape[2:]
    most = [math.ceil(_NEIGHBOURS_PER_VOLUME * 4.0 / 3.0 * math.pi * r**3) for r in (p.cutoff_radial, p.cutoff_angular)]
    header = [
        f"nep4{'_zbl' if zbl else ''} {len(p.species)} {' '.join(chemical_symbols[z] for z in p.species)}",
        *([f"zbl {p.zbl_inner!r} {p.zbl_outer!r}"] if zbl else []),
        f"cutoff {p.cutoff_radial!r} {p.cutoff_angular!r} {most[0]} {most[1]}",
        f"n_max {n_r - 1} {n_a - 1}",
        f"basis_size {k_r - 1} {k_a - 1}",
        f"l_max {p.l_max} {2 * p.with_4body} {1 * p.with_5body}",
        f"ANN {p.w0.shape[1]} 0",
    ]
    with replacing(path) as temporary:
        lines = [*header, *(f"{value:.9e}" for value in numbers.tolist())]
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


class _Reader:
    """Reads the header line by line, then the numbers in one go."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path = path
        self.lines = lines
        self.position = 0

    def fail(self, what: str) -> SimulationError:
        return SimulationError(f"potential {self.path}, line {self.position}: {what}", fix=_FIX)

    def header(self, keyword: str, counts: tuple[int, ...]) -> list[float]:
        """Read one header line `keyword number ...` with one of the allowed counts of numbers."""
        words = self.lines[self.position].split() if self.position < len(self.lines) else []
        self.position += 1
        if not words or words[0] != keyword:
            raise self.fail(f"expected {keyword!r}, found {words[0] if words else 'the end'!r}")
        try:
            values = [float(word) for word in words[1:]]
        except ValueError as error:
            raise self.fail(f"{keyword!r} is followed by something that is no number") from error
        if len(values) not in counts:
            raise self.fail(f"{keyword!r} has {len(values)} values, this reader knows {counts}")
        if not np.isfinite(values).all():
            raise self.fail(f"{keyword!r} has a value that is not finite")
        return values

    def counts(self, keyword: str, counts: tuple[int, ...]) -> list[int]:
        """Read a header line whose values are whole numbers from 0 on."""
        values = self.header(keyword, counts)
        if any(value < 0 or value != int(value) for value in values):
            raise self.fail(f"{keyword!r} has a value that is no whole number from 0 on")
        return [int(value) for value in values]

    def species(self) -> tuple[int, bool, tuple[int, ...]]:
        """Read the first line: version, whether ZBL is used, atomic numbers."""
        words = self.lines[0].split() if self.lines else []
        self.position = 1
        kinds = {"nep3": (3, False), "nep3_zbl": (3, True), "nep4": (4, False), "nep4_zbl": (4, True)}
        if not words or words[0] not in kinds:
            raise self.fail(f"{words[0][:40] if words else 'an empty file'!r} is no kind of potential read here")
        version, zbl = kinds[words[0]]
        symbols = words[2:]
        if len(words) < 3 or not words[1].isdigit() or int(words[1]) != len(symbols):
            raise self.fail("the number of species does not match the list")
        unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
        if unknown:
            raise self.fail(f"{unknown[0]!r} is no element")
        if len(set(symbols)) < len(symbols):
            raise self.fail("an element is named twice")
        return version, zbl, tuple(int(atomic_numbers[symbol]) for symbol in symbols)

    def parameters(self, sha256: str) -> NEPParameters:
        version, zbl, species = self.species()
        inner, outer = self.header("zbl", (2,)) if zbl else (0.0, 0.0)
        if zbl and not 0.0 < inner < outer:
            raise self.fail("a flexible ZBL (or cut-offs out of order) is not supported")
        cutoff = self.header("cutoff", (2, 4))
        if min(cutoff[:2]) <= 0.0:
            raise self.fail("a cut-off is not above zero")
        n_radial, n_angular = (v + 1 for v in self.counts("n_max", (2,)))
        k_radial, k_angular = (v + 1 for v in self.counts("basis_size", (2,)))
        l_values = [*self.counts("l_max", (1, 2, 3)), 0, 0]
        l_max, four, five = l_values[0], l_values[1] == 2, l_values[2] == 1
        if not 1 <= l_max <= 8 or l_values[1] not in (0, 2) or l_values[2] not in (0, 1):
            raise self.fail("l_max beyond 8, or invariants other than 222 and 1111, are not supported")
        neurons = self.counts("ANN", (2,))[0]
        if neurons < 1:
            raise self.fail("there are no neurons")
        kinds = len(species)
        descriptors = n_radial + n_angular * (l_max + four + five)
        networks = kinds if version == 4 else 1
        per_network = neurons * (descriptors + 2)
        sizes = (
            networks * per_network + 1,
            kinds * kinds * n_radial * k_radial,
            kinds * kinds * n_angular * k_angular,
            descriptors,
        )
        ann, c_r, c_a, scaler = self._numbers(sizes)
        nets = ann[:-1].reshape(networks, per_network).expand(kinds, per_network)
        w0_end = neurons * descriptors
        return NEPParameters(
            name=self.path.stem,
            sha256=sha256,
            species=species,
            cutoff_radial=cutoff[0],
            cutoff_angular=cutoff[1],
            zbl_inner=inner,
            zbl_outer=outer,
            l_max=l_max,
            with_4body=four,
            with_5body=five,
            w0=nets[:, :w0_end].reshape(kinds, neurons, descriptors),
            b0=nets[:, w0_end : w0_end + neurons],
            w1=nets[:, w0_end + neurons :],
            b1=ann[-1],
            c_radial=c_r.reshape(n_radial, k_radial, kinds, kinds).permute(2, 3, 0, 1).contiguous(),
            c_angular=c_a.reshape(n_angular, k_angular, kinds, kinds).permute(2, 3, 0, 1).contiguous(),
            scaler=scaler,
        )

    def _numbers(self, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Read the numbers after the header and cut them into blocks of the given sizes."""
        text = self.lines[self.position :]
        try:
            values = np.array(text, dtype=np.float64) if text else np.zeros(0)
        except ValueError as error:
            raise self.fail("a line after the header is no number") from error
        if len(values) != sum(sizes):
            raise self.fail(f"{len(values)} numbers follow the header, {sum(sizes)} are needed: truncated?")
        if not np.isfinite(values).all():
            raise self.fail("a parameter is NaN or infinite")
        return torch.split(torch.from_numpy(values), list(sizes))
