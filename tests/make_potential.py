"""Small neuroevolution potentials for the tests, written in GPUMD's text format.

`write_tiny_nep` makes one with random parameters: every term of the format is in use, so it serves to compare with
another implementation, but nothing physical may be expected of it. `write_morse_nep` makes one that holds close-packed
crystals of any elements of the vocabulary together, so that cells relax and vibrate whatever dopants are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectnet.elements import INDEX, VOCABULARY, properties

FloatArray = NDArray[np.float64]

NEURONS = 10
CUTOFFS = (5.0, 4.0)  # radial and angular, angstrom
MORSE_CUTOFF = 5.0
MORSE_BASIS = 8


def write_tiny_nep(
    path: Path,
    symbols: Sequence[str],
    seed: int,
    zbl: bool = True,
    version: int = 4,
    l_max: str = "4 2 1",
) -> Path:
    """Write a NEP with random parameters: five radial and five angular functions, ten neurons.

    Args:
        path: File to write.
        symbols: Elements.
        seed: The same seed gives the same file.
        zbl: Whether to add the repulsion of nuclei between 1 and 2 angstrom.
        version: 3 (one network for all elements) or 4 (one each).
        l_max: Three-body degree, and the switches of four-body (2) and five-body (1) invariants.
    """
    rng = np.random.default_rng(seed)
    degree, four, five = (int(word) for word in l_max.split())
    functions, basis, kinds = 5, 9, len(symbols)
    descriptors = functions * (1 + degree + (four == 2) + (five == 1))
    networks = kinds if version == 4 else 1
    blocks = []
    for _ in range(networks):
        blocks += [rng.normal(0.0, 0.5, NEURONS * descriptors), rng.normal(0.0, 0.5, 2 * NEURONS)]
    blocks.append(rng.normal(0.0, 0.1, 1))
    blocks.append(rng.normal(0.0, 0.3, 2 * functions * basis * kinds**2))
    blocks.append(rng.uniform(0.1, 0.4, descriptors))
    header = _header(version, symbols, zbl, CUTOFFS, (functions, functions), (basis, basis), l_max, NEURONS)
    return _write(path, header, np.concatenate(blocks))


def write_morse_nep(path: Path, symbols: Sequence[str] = VOCABULARY) -> Path:
    """Write a NEP that is a Morse potential but for a small many-body term: close-packed crystals are stable.

    Stiffness and bond length differ from element to element by some per cent, so that dopants relax. The neuron that
    carries the pair energy works in the linear range of its tanh; a second one adds a little of all three-body
    invariants.
    """
    kinds = len(symbols)
    index = [INDEX[symbol] for symbol in symbols]
    radius = properties("covalent_radius_angstrom")[index]
    size = 1.0 + 0.03 * np.tanh((radius - 1.3) / 0.3)  # of the bond length
    bond = 2.8 * 0.5 * (size[:, None] + size[None, :])
    coefficients = _morse_coefficients(bond.ravel()).reshape(MORSE_BASIS + 1, kinds, kinds)
    linear = 0.01
    ann = []
    for k in range(kinds):
        strength = 0.5 * (1.0 + 0.2 * np.cos(index[k]))  # half the energy of a bond belongs to each end
        # w0 of neuron 1 (radial) and 2 (angular, l = 1 to 4), the two biases, and the two weights of the output
        ann += [linear, 0.0, 0.0, 0.0, 0.0, 0.0, *[linear] * 4, 0.0, 0.0, strength / linear, 0.05 / linear]
    angular = np.full(kinds**2, 0.05)
    header = _header(4, symbols, True, (MORSE_CUTOFF, 4.0), (1, 1), (MORSE_BASIS + 1, 1), "4 0 0", 2)
    return _write(path, header, np.concatenate([ann, [0.0], coefficients.ravel(), angular, np.ones(5)]))


def _morse_coefficients(bond: FloatArray) -> FloatArray:
    """Fit the radial basis, (9,), to Morse wells with minima at the given distances; (9, len(bond))."""
    r = np.linspace(1.9, MORSE_CUTOFF, 200)
    x = 2.0 * (r / MORSE_CUTOFF - 1.0) ** 2 - 1.0
    chebyshev = np.stack([np.cos(k * np.arccos(x)) for k in range(MORSE_BASIS + 1)])
    basis = 0.5 * (chebyshev + 1.0) * 0.5 * (np.cos(np.pi * r / MORSE_CUTOFF) + 1.0)
    depth, steepness = 0.4, 1.6
    well = depth * ((1.0 - np.exp(-steepness * (r[:, None] - bond[None, :]))) ** 2 - 1.0)
    weight = np.exp(-np.maximum(2.4 - r, 0.0) / 0.2)[:, None]  # the steep wall need not be exact
    return np.asarray(np.linalg.lstsq(basis.T * weight, well * weight, rcond=None)[0])


def _header(
    version: int,
    symbols: Sequence[str],
    zbl: bool,
    cutoffs: tuple[float, float],
    functions: tuple[int, int],
    basis: tuple[int, int],
    l_max: str,
    neurons: int,
) -> list[str]:
    return [
        f"nep{version}{'_zbl' if zbl else ''} {len(symbols)} {' '.join(symbols)}",
        *(["zbl 1 2"] if zbl else []),
        f"cutoff {cutoffs[0]:g} {cutoffs[1]:g} 200 100",
        f"n_max {functions[0] - 1} {functions[1] - 1}",
        f"basis_size {basis[0] - 1} {basis[1] - 1}",
        f"l_max {l_max}",
        f"ANN {neurons} 0",
    ]


def _write(path: Path, header: list[str], numbers: FloatArray) -> Path:
    path.write_text("\n".join([*header, *(f"{value:.9e}" for value in numbers)]) + "\n", encoding="ascii")
    return path
