"""Nequix through the reference path: in torch it gives what the package's own calculator gives."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from crystals import host, layered
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nequix import NequixPotential
from defectnet.potentials.nequix_network import CHUNK
from defectnet.potentials.potential import load_potential

CUTOFF = 4.0
SPECIES = {13: 0, 22: 1, 29: 2}


def rattled(seed: int, name: str = "AlCu") -> Crystal:
    atoms = layered(name) * (2, 1, 1 + seed)
    crystal = host(atoms).crystal
    return crystal.moved(np.random.default_rng(seed).normal(0.0, 0.05, (len(crystal), 3)))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(SimulationError, match=r"absent.nqx does not exist"):
        load_potential(tmp_path / "absent.nqx")


# -- with the package --------------------------------------------------------------------------------------------------


SIZES = {
    "as published": {
        "hidden_irreps": "6x0e + 4x1o + 3x2e + 2x3o",
        "lmax": 3,
        "index_weights": False,
        "layer_norm": True,
    },
    "plain": {"hidden_irreps": "4x0e + 2x1o", "lmax": 1, "index_weights": False, "layer_norm": False},
    "skip by species": {"hidden_irreps": "4x0e + 3x1o", "lmax": 2, "index_weights": True, "layer_norm": True},
}


def write_network(path, **changes):
    """A tiny random network in a file."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    pytest.importorskip("nequix", reason="pip install 'defectnet[reference]'")
    import jax
    from nequix.model import Nequix, save_model

    config = {
        "atomic_numbers": list(SPECIES),
        "cutoff": CUTOFF,
        "n_layers": 3,
        "radial_basis_size": 4,
        "radial_mlp_size": 8,
        "radial_mlp_layers": 2,
        "radial_polynomial_p": 6.0,
        "mlp_init_scale": 4.0,
        "shift": -2.0,
        "scale": 0.7,
        "avg_n_neighbors": 12.0,
        **changes,
    }
    sizes = {k: v for k, v in config.items() if k != "atomic_numbers"}
    model = Nequix(jax.random.key(3), n_species=3, atom_energies=[-1.0, -2.0, -3.0], **sizes)
    save_model(str(path), model, config)
    return path


@pytest.fixture(scope="module", params=SIZES)
def weights(request, tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("nequix") / "tiny.nqx", **SIZES[request.param])


@pytest.mark.parametrize("batch", [1, 3])
def test_same_as_the_calculator_of_the_package(weights, batch):
    from ase import Atoms
    from nequix.calculator import NequixCalculator

    crystals = [rattled(0), rattled(1), rattled(1, "TiAl"), rattled(2)]
    found = NequixPotential(weights, batch=batch).evaluate_many(crystals)
    calculator = NequixCalculator(model_path=str(weights), backend="jax", use_kernel=False)
    for crystal, ours in zip(crystals, found, strict=True):
        atoms = Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True, calculator=calculator)
        assert ours.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        assert np.abs(ours.forces - atoms.get_forces()).max() < 1e-4
        assert np.abs(ours.stress - atoms.get_stress(voigt=False)).max() < 1e-5
        assert np.abs(ours.forces).max() > 0.01


def test_chunks_of_edges_change_nothing_but_rounding(weights):
    potential, crystal = NequixPotential(weights), rattled(1)
    potential.network.chunk = CHUNK
    whole = potential.evaluate(crystal)
    potential.network.chunk = 7
    assert np.abs(potential.evaluate(crystal).forces - whole.forces).max() < 1e-5


def test_compiled_messages_are_those_of_torch(weights):
    pytest.importorskip("numba", reason="pip install 'defectnet[reference]'")
    potential, crystal = NequixPotential(weights), rattled(1)
    assert potential.network.chunk == 0
    compiled = potential.evaluate(crystal)
    potential.network.chunk = CHUNK
    result = potential.evaluate(crystal)
    assert np.abs(result.forces - compiled.forces).max() < 1e-5
    assert np.abs(result.stress - compiled.stress).max() < 1e-6


def test_one_displaced_atom_is_what_a_displaced_crystal_is(weights):
    """What is kept from one displacement to the next belongs to edges that do not move."""
    potential, crystal = NequixPotential(weights), rattled(1)
    atoms, shifts = [0, 0, 3, 2], np.array([[0.02, 0, 0], [0, 0, -0.3], [0.1, 0.1, 0.1], [0, 0.02, 0]])
    found = potential.displaced_forces(crystal, atoms, shifts)
    for atom, shift, forces in zip(atoms, shifts, found, strict=True):
        displacement = np.zeros((len(crystal), 3))
        displacement[atom] = shift
        assert np.abs(forces - potential.evaluate(crystal.moved(displacement)).forces).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-2
    many = NequixPotential(weights, batch=3).displaced_forces(crystal, atoms, shifts)
    assert np.abs(np.array(many) - np.array(found)).max() < 1e-5


def test_features_of_two_parities_are_refused(tmp_path):
    path = write_network(tmp_path / "odd.nqx", **{**SIZES["plain"], "hidden_irreps": "4x0e + 2x1o + 2x1e"})
    with pytest.raises(SimulationError, match="parity"):
        NequixPotential(path)


def test_hessian_from_forward_differences(weights):
    potential = NequixPotential(weights, displacement=0.02)
    crystal = rattled(1)
    hessian = potential.force_constants(crystal).hessian().numpy()
    step = 0.02 * np.random.default_rng(0).normal(size=(len(crystal), 3)) / np.sqrt(3 * len(crystal))
    ahead, behind = (potential.evaluate(crystal.moved(sign * step)).forces for sign in (1, -1))
    expected = (behind - ahead).ravel() / 2
    assert np.abs(hessian @ step.ravel() - expected).max() < 0.1 * np.abs(expected).max()


def test_unknown_elements_and_broken_files(weights, tmp_path):
    potential = load_potential(weights)
    assert isinstance(potential, NequixPotential)
    with pytest.raises(SimulationError, match="does not know the element with Z = 28"):
        potential.check(rattled(0, "CuNi"))
    (tmp_path / "cut.nqx").write_bytes(weights.read_bytes()[:900])
    (tmp_path / "text.nqx").write_text(json.dumps({"a": 1}) + "\n")
    for name in ("cut.nqx", "text.nqx"):
        with pytest.raises(SimulationError, match="is no Nequix network, or truncated"):
            load_potential(tmp_path / name)
