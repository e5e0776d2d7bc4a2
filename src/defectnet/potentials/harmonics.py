"""Real solid harmonics as polynomials, so that values and derivatives are matrix products over monomials.

A harmonic of degree l is a homogeneous polynomial in (x, y, z); its gradient and second derivatives are polynomials
with exactly known coefficients. No recurrences and no singular point on the z axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

Polynomial = dict[tuple[int, int, int], float]


def solid_harmonic(degree: int, order: int) -> Polynomial:
    """Return a real solid harmonic, orthonormal on the unit sphere, as exponents (x, y, z) -> coefficient.

    Args:
        degree: l >= 0.
        order: m, -l to l; negative orders are the sine-like ones.
    """
    m = abs(order)
    plane = _plane_part(m, sine=order < 0)
    axis: Polynomial = {}
    for k in range((degree - m) // 2 + 1):
        weight = (
            (-1) ** k
            * 2.0**-degree
            * math.comb(degree, k)
            * math.comb(2 * degree - 2 * k, degree)
            * math.factorial(degree - 2 * k)
            / math.factorial(degree - 2 * k - m)
        )
        for a in range(k + 1):  # (x^2 + y^2 + z^2)^k
            for b in range(k - a + 1):
                multinomial = math.comb(k, a) * math.comb(k - a, b)
                key = (2 * a, 2 * b, 2 * (k - a - b) + degree - 2 * k - m)
                axis[key] = axis.get(key, 0.0) + weight * multinomial
    norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m))
    norm *= math.sqrt(2.0) if m else 1.0
    product: Polynomial = {}
    for (x1, y1, z1), u in plane.items():
        for (x2, y2, z2), v in axis.items():
            key = (x1 + x2, y1 + y2, z1 + z2)
            product[key] = product.get(key, 0.0) + norm * u * v
    return {key: value for key, value in product.items() if value != 0.0}


def _plane_part(m: int, *, sine: bool) -> Polynomial:
    """Real or imaginary part of (x + iy)^m."""
    start = 1 if sine else 0
    return {(m - p, p, 0): float((-1) ** (p // 2) * math.comb(m, p)) for p in range(start, m + 1, 2)}


@dataclass(frozen=True)
class HarmonicTables:
    """Coefficients over all monomials up to degree `l_max`; H harmonics with l = 1 to l_max, C monomials.

    Attributes:
        exponents: (C, 3) long.
        degree: (H,) l of each harmonic, as float for arithmetic.
        value: (C, H); gradient: (C, 3 H), Cartesian index slow; second: (C, 6 H) for xx, yy, zz, yz, xz, xy.
        raised, lowered: (3, R) long, the monomials that hold x, y and z, and what they are with one power less.
        steps: For each monomial but the first, an earlier one and the coordinate that it is to be multiplied with.
    """

    exponents: Tensor
    degree: Tensor
    value: Tensor
    gradient: Tensor
    second: Tensor
    raised: Tensor
    lowered: Tensor
    steps: tuple[tuple[int, int], ...]

    def monomials(self, unit: Tensor) -> Tensor:
        """Evaluate all monomials at unit vectors, (P, 3) -> (P, C)."""
        out = unit.new_empty(len(self.exponents), len(unit))
        out[0] = 1.0
        coordinates = unit.T.contiguous()
        for column, (parent, axis) in enumerate(self.steps, start=1):
            torch.mul(out[parent], coordinates[axis], out=out[column])
        return out.T

    def combined_gradient(self, weights: Tensor, monomials: Tensor) -> Tensor:
        """Return the gradients (P, 3) of (P, H) combinations of the harmonics, from their (P, C) monomials."""
        combined, monomials = self.value @ weights.T, monomials.T  # (C, P): sums over long rows are fast
        parts = []
        for axis, (raised, lowered) in enumerate(zip(self.raised, self.lowered, strict=True)):
            power = self.exponents[raised, axis, None].to(combined.dtype)
            parts.append((combined.index_select(0, raised) * monomials.index_select(0, lowered) * power).sum(0))
        return torch.stack(parts, dim=1)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float64) -> HarmonicTables:
        """Return the tables on another device, or in another precision."""
        floats = {name: getattr(self, name).to(device, dtype) for name in ("degree", "value", "gradient", "second")}
        places = {name: getattr(self, name).to(device) for name in ("exponents", "raised", "lowered")}
        return replace(self, **floats, **places)


VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Order of the six second derivatives."""


@cache
def harmonic_tables(l_max: int) -> HarmonicTables:
    """Build the tables for l = 1 to `l_max`, orders -l to l, in float64 on the CPU."""
    exponents = [(x, y, z) for x in range(l_max + 1) for y in range(l_max + 1 - x) for z in range(l_max + 1 - x - y)]
    column = {key: i for i, key in enumerate(exponents)}
    harmonics = [
        (degree, solid_harmonic(degree, m)) for degree in range(1, l_max + 1) for m in range(-degree, degree + 1)
    ]

    def table(polynomials: list[Polynomial]) -> Tensor:
        out = torch.zeros(len(exponents), len(polynomials), dtype=torch.float64)
        for h, polynomial in enumerate(polynomials):
            for key, value in polynomial.items():
                out[column[key], h] = value
        return out

    def one_less(key: tuple[int, int, int], axis: int) -> int:
        x, y, z = (power - (i == axis) for i, power in enumerate(key))
        return column[x, y, z]

    raised = [[key for key in exponents if key[axis]] for axis in range(3)]
    last = [max(axis for axis in range(3) if key[axis]) for key in exponents[1:]]
    plain = [polynomial for _, polynomial in harmonics]
    first = [[_derivative(polynomial, axis) for polynomial in plain] for axis in range(3)]
    second = [[_derivative(polynomial, b) for polynomial in first[a]] for a, b in VOIGT]
    return HarmonicTables(
        exponents=torch.tensor(exponents),
        degree=torch.tensor([float(degree) for degree, _ in harmonics], dtype=torch.float64),
        value=table(plain),
        gradient=torch.cat([table(part) for part in first], dim=1),
        second=torch.cat([table(part) for part in second], dim=1),
        raised=torch.tensor([[column[key] for key in keys] for keys in raised]),
        lowered=torch.tensor([[one_less(key, axis) for key in keys] for axis, keys in enumerate(raised)]),
        steps=tuple((one_less(key, axis), axis) for key, axis in zip(exponents[1:], last, strict=True)),
    )


def _derivative(polynomial: Polynomial, axis: int) -> Polynomial:
    out: Polynomial = {}
    for key, value in polynomial.items():
        if key[axis]:
            lowered = list(key)
            lowered[axis] -= 1
            out[lowered[0], lowered[1], lowered[2]] = value * key[axis]
    return out


@cache
def cubic_invariant() -> Tensor:
    """Return C, (5, 5, 5), with C_abc A_a A_b A_c the third-order invariant of an l = 2 density.

    It is proportional to the determinant of the traceless tensor sum_j g (3 u u - 1), with the weight of the
    Wigner 3j contraction (2 2 2) of NEP (Fan et al., J. Chem. Phys. 157, 114801 (2022), four-body descriptor).
    Orders run from -2 to 2.
    """
    scale = -0.5 * (5 / (4 * math.pi)) ** 1.5 * math.sqrt(2 / 35)
    # Tensor t_ab with t_zz = s0 = sum g (3 z^2 - 1), written in the orthonormal harmonics A_m.
    k0, k1 = math.sqrt(16 * math.pi / 5), math.sqrt(4 * math.pi / 15)
    basis = torch.zeros(5, 3, 3, dtype=torch.float64)
    for m, (a, b) in ((0, (0, 1)), (1, (1, 2)), (3, (0, 2))):
        basis[m, a, b] = basis[m, b, a] = 3.0 * k1
    basis[2] = torch.diag(torch.tensor([-0.5, -0.5, 1.0], dtype=torch.float64)) * k0
    basis[4] = torch.diag(torch.tensor([3.0, -3.0, 0.0], dtype=torch.float64)) * k1
    levi = torch.zeros(3, 3, 3, dtype=torch.float64)
    for a, b, c, sign in ((0, 1, 2, 1), (1, 2, 0, 1), (2, 0, 1, 1), (0, 2, 1, -1), (2, 1, 0, -1), (1, 0, 2, -1)):
        levi[a, b, c] = sign
    # det t = (1/6) eps_abc eps_def t_ad t_be t_cf
    determinant: Tensor = torch.einsum("abc,def,xad,ybe,zcf->xyz", levi, levi, basis, basis, basis)
    return torch.mul(determinant, scale / 6.0)
