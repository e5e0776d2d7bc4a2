"""Networks of the package nequix as ours: ``python examples/convert_nequix.py FILE.nqx --out FOLDER``.

How the package normalises and orders its tensors is not written again: each of its linear maps is read off by applying
it to unit vectors. Needs the package, see docs/potentials.md.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectnet.errors import DefectNetError, SimulationError
from defectnet.files import file_sha256
from defectnet.potentials.nequix_folder import save_network
from defectnet.potentials.nequix_network import NequixForm, monomials

Array = NDArray[np.float64]

CARD = """# {name}

A Nequix network (Koker et al., arXiv 2508.16067), converted from `{file}`. Licence of the weights: {licence}.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the network of a file (.nqx) as a folder that needs neither JAX nor the package.

    Args:
        arguments: Words of the command line; those of the process by default.

    Returns:
        Exit status: 0, or 2 after an error of the user's, which is named.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path, help="weights (.nqx)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--licence", default="MIT", help="of the weights")
    parser.add_argument("--source", default="", help="where the file comes from")
    parser.add_argument("--card", type=Path, help="text of the folder's README.md")
    chosen = parser.parse_args(arguments)
    try:
        form, tensors = read_nqx(chosen.file)
        origin = {"file": chosen.file.name, "sha256": file_sha256(chosen.file), "from": chosen.source}
        plain = CARD.format(name=chosen.out.name, file=chosen.file.name, licence=chosen.licence)
        card = plain if chosen.card is None else chosen.card.read_text(encoding="utf-8")
        save_network(chosen.out, form, tensors, licence=chosen.licence, source=origin, card=card)
    except (DefectNetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_nqx(path: str | Path) -> tuple[NequixForm, dict[str, Tensor]]:
    """Read a network of the package.

    Raises:
        SimulationError: The file is missing, damaged or no such network; the package is missing; or the network has
            features of both parities for one l.
    """
    path = Path(path)
    if not path.is_file():
        raise SimulationError(f"potential {path} does not exist", fix="Check the path")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads the weights, and computes next to nothing
    try:
        from nequix.model import load_model  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise SimulationError(
            f"potential {path} needs the package nequix",
            why=str(error),
            fix="pip install 'defectnet[reference]' and pip install --no-deps nequix",
        ) from error
    try:
        model, config = load_model(path, False)
    except (ValueError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise SimulationError(
            f"potential {path} is no Nequix network, or truncated", why=str(error)[:120], fix="Get the file again"
        ) from error
    return _Reader(model, config).read()


class _Reader:
    """Reads the package's modules.

    Args:
        model: A `nequix.model.Nequix`.
        config: Its settings, as the file has them.
    """

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        import e3nn_jax  # type: ignore[import-untyped,import-not-found,unused-ignore]

        self.e3nn, self.model, self.config = e3nn_jax, model, config

    def read(self) -> tuple[NequixForm, dict[str, Tensor]]:
        """Return form and tensors."""
        form = self.form()
        tensors = {
            "atom_energies": np.asarray(self.model.atom_energies),
            "harmonics": self.harmonics(form.l_max),
            "readout": self.linear(self.model.readout, self.model.readout.irreps_in)[0][:, 0],
        }
        for number, layer in enumerate(self.model.layers):
            paths = form.paths(number)
            for source, found in paths.items():
                for harmonic, target in found:
                    values = np.asarray(self.e3nn.clebsch_gordan(source, harmonic, target)) * math.sqrt(2 * target + 1)
                    tensors[f"coupling.{source}.{harmonic}.{target}"] = values.transpose(1, 2, 0)
            for name, values in self.layer(layer, form.features(number), paths).items():
                tensors[f"layers.{number}.{name}"] = values
        return form, {name: torch.from_numpy(np.array(values, order="C")) for name, values in tensors.items()}

    def form(self) -> NequixForm:
        """Return the settings."""
        hidden = {int(kind.l): int(count) for count, kind in self._regrouped(self.config["hidden_irreps"])}
        scalar_gain, gate_gain = self._gains()
        return NequixForm(
            elements=tuple(sorted(int(number) for number in self.config["atomic_numbers"])),
            cutoff=float(self.model.cutoff),
            power=float(self.model.radial_polynomial_p),
            functions=int(self.model.radial_basis_size),
            radial_width=int(self.config["radial_mlp_size"]),
            radial_layers=int(self.config["radial_mlp_layers"]),
            l_max=int(self.model.lmax),
            channels=tuple(hidden.get(degree, 0) for degree in range(max(hidden) + 1)),
            layers=len(self.model.layers),
            neighbours=float(self.config["avg_n_neighbors"]),
            scale=float(self.model.scale),
            shift=float(self.model.shift),
            norm=self.model.layers[0].layer_norm is not None,
            skip_by_species=bool(self.model.layers[0].index_weights),
            scalar_gain=scalar_gain,
            gate_gain=gate_gain,
        )

    def harmonics(self, l_max: int) -> Array:
        """Return (monomials, spherical harmonics), from the package's harmonics at more directions than monomials."""
        directions = np.random.default_rng(0).normal(size=(400, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        values = self.e3nn.spherical_harmonics(
            self.e3nn.s2_irreps(l_max), directions, normalize=True, normalization="component"
        )
        table = monomials(torch.from_numpy(directions), l_max).numpy()
        # On the sphere some monomials depend on others; the smallest solution is as good as any.
        solution: Array = np.linalg.lstsq(table, np.asarray(values.array, dtype=np.float64), rcond=None)[0]
        return solution

    def linear(self, call: Callable[[Any], Any], irreps: Any) -> dict[int, NDArray[Any]]:
        """Return for each l the (U, U') matrix of an equivariant linear map, from what it makes of unit vectors."""
        irreps = self._regrouped(irreps)
        matrices = {}
        for (channels, kind), part in zip(irreps, irreps.slices(), strict=True):
            units = np.zeros((channels, irreps.dim), dtype=np.float32)
            units[np.arange(channels), part.start + kind.dim * np.arange(channels)] = 1.0
            out = call(self.e3nn.IrrepsArray(irreps, units))
            for (into, target), place in zip(out.irreps, out.irreps.slices(), strict=True):
                if target == kind:
                    matrices[int(kind.l)] = np.asarray(out.array[:, place]).reshape(channels, into, kind.dim)[:, :, 0]
        return matrices

    def layer(
        self, layer: Any, features: dict[int, int], paths: dict[int, list[tuple[int, int]]]
    ) -> dict[str, NDArray[Any]]:
        """Return the tensors of a convolution, by their names in it."""
        irreps = self._regrouped(layer.linear_1.irreps_in)
        if layer.index_weights:
            number = int(layer.skip.num_indexed_weights)
            each = [self.linear(partial(_skip_of, layer.skip, kind), irreps) for kind in range(number)]
            skip = {degree: np.stack([matrices[degree] for matrices in each]) for degree in each[0]}
        else:
            skip = self.linear(layer.skip, irreps)
        maps = {
            "before": self.linear(layer.linear_1, irreps),
            "after": self.linear(layer.linear_2, layer.linear_2.irreps_in),
            "skip": {degree: matrix for degree, matrix in skip.items() if degree in features},
        }
        if layer.layer_norm is not None:
            pairs = zip(layer.layer_norm.irreps, layer.layer_norm.affine_weight, strict=True)
            maps["norm"] = {int(kind.l): np.asarray(weight) for (_, kind), weight in pairs}
        *radial, last = (np.asarray(part.weights) for part in layer.radial_mlp.layers)
        radial.append(last[:, _columns(features, paths)])
        maps["radial"] = dict(enumerate(radial))
        return {f"{part}.{key}": values for part, found in maps.items() for key, values in found.items()}

    def _gains(self) -> tuple[float, float]:
        """Return the factors that the package's gate gives to the activations of scalars and of gates."""
        import jax

        one = self.e3nn.IrrepsArray("2x0e+1x1o", np.array([[1.0, 1.0, 1.0, 0.0, 0.0]], dtype=np.float32))
        out = self.e3nn.gate(one, even_act=jax.nn.silu, odd_act=jax.nn.tanh, even_gate_act=jax.nn.silu).array[0]
        plain = 1.0 / (1.0 + math.exp(-1.0))
        return float(out[0]) / plain, float(out[1]) / plain

    def _regrouped(self, irreps: Any) -> Any:
        regrouped = self.e3nn.Irreps(irreps).regroup()
        degrees = [int(kind.l) for _, kind in regrouped]
        if len(set(degrees)) < len(degrees) or any(kind.p != (-1) ** kind.l for _, kind in regrouped):
            raise SimulationError(
                f"the network has features {irreps}", fix="Only networks whose features have the parity of their l work"
            )
        return regrouped


def _columns(features: dict[int, int], paths: dict[int, list[tuple[int, int]]]) -> list[int]:
    """Return where the package has the last weights of a radial network: by l of the messages first, then as we do."""
    ours = [(source, target) for source, found in paths.items() for _, target in found]
    theirs = sorted(range(len(ours)), key=lambda k: ours[k][1])  # stable
    starts = dict(zip(theirs, accumulate((features[ours[k][0]] for k in theirs), initial=0), strict=False))
    return [starts[k] + u for k, (source, _) in enumerate(ours) for u in range(features[source])]


def _skip_of(skip: Any, kind: int, features: Any) -> Any:
    """Apply the skip connection of one species."""
    return skip(np.full(len(features.array), kind), features)


if __name__ == "__main__":
    sys.exit(main())
