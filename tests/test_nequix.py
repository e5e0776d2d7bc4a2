"""Nequix: the bundled network, tiny ones of other forms, and how networks of the package become ours."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_nequix import main as convert
from crystals import host, layered
from defectnet.distil.__main__ import main as distil
from defectnet.errors import SimulationError
from defectnet.files import file_sha256
from defectnet.potentials.folder import CARD, CONFIG, WEIGHTS, bundled_potentials, licence_of
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nequix import NequixPotential
from defectnet.potentials.nequix_folder import load_network, save_network
from defectnet.potentials.nequix_network import CHUNK, NequixForm, NequixNetwork, monomials
from defectnet.potentials.potential import load_nep, load_potential, potential_names
from make_nequix_golden import GOLDEN

ELEMENTS = (13, 22, 29)

FORM = NequixForm(
    elements=ELEMENTS,
    cutoff=4.0,
    power=6.0,
    functions=4,
    radial_width=8,
    radial_layers=2,
    l_max=3,
    channels=(6, 4, 3, 2),
    layers=3,
    neighbours=12.0,
    scale=0.7,
    shift=-2.0,
    norm=True,
    skip_by_species=False,
    scalar_gain=1.7,
    gate_gain=1.6,
)

FORMS = {
    "as published": FORM,
    "plain": replace(FORM, l_max=1, channels=(6, 4), norm=False, radial_layers=1),
    "skip by species": replace(FORM, l_max=2, channels=(6, 4), skip_by_species=True),
    "no vectors": replace(FORM, l_max=2, channels=(6, 0, 3), scale=5.0),
}


def rattled(seed: int, name: str = "AlCu") -> Crystal:
    atoms = layered(name) * (2, 1, 1 + seed)
    crystal = host(atoms).crystal
    return crystal.moved(np.random.default_rng(seed).normal(0.0, 0.05, (len(crystal), 3)))


def harmonics(table: torch.Tensor, l_max: int) -> torch.Tensor:
    """The published network's harmonics up to a smaller l."""
    unit = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 3)))
    unit /= unit.norm(dim=1, keepdim=True)
    values = (monomials(unit, 3) @ table)[:, : (l_max + 1) ** 2].numpy()
    return torch.from_numpy(np.linalg.lstsq(monomials(unit, l_max).numpy(), values, rcond=None)[0])


def tensors_of(form: NequixForm) -> dict[str, torch.Tensor]:
    """Random numbers with the published network's geometry."""
    published = load_network(bundled_potentials()["nequix"])[1]
    generator = torch.Generator().manual_seed(3)
    out = {}
    for name, shape in form.shapes().items():
        if name.startswith("coupling"):
            out[name] = published[name]
        elif name == "harmonics":
            out[name] = harmonics(published[name], form.l_max)
        else:
            fan = shape[-2] if len(shape) > 1 else 1
            out[name] = torch.randn(shape, generator=generator) * (2.0 if ".radial." in name else 1.0) / fan**0.5
    return out


@pytest.fixture(scope="module", params=FORMS)
def folder(request, tmp_path_factory):
    """A tiny random network in a folder."""
    path, form = tmp_path_factory.mktemp("nequix") / "tiny", FORMS[request.param]
    save_network(path, form, tensors_of(form), licence="MIT", source={"from": "chance"}, card="# tiny\n")
    return path


def in_double(folder) -> NequixPotential:
    potential = NequixPotential.from_folder(folder)
    potential.network = NequixNetwork(*load_network(folder)[:2], dtype=torch.float64)
    return potential


# -- the bundled network -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    return load_potential("Nequix")


@pytest.mark.parametrize("name", json.loads(GOLDEN.read_text(encoding="utf-8")))
def test_same_as_the_package_computed(name, published):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    crystal = Crystal(*(np.array(golden[key]) for key in ("numbers", "cell", "positions")))
    found = published.evaluate(crystal)
    assert found.energy == pytest.approx(golden["energy"], abs=1e-4)
    assert np.abs(found.forces - golden["forces"]).max() < 1e-4
    assert np.abs(found.stress - golden["stress"]).max() < 1e-5
    assert np.abs(golden["forces"]).max() > 0.1


def test_bundled_network_says_what_it_is(published):
    assert isinstance(published, NequixPotential)
    assert published.name == "nequix"
    assert potential_names()[:2] == ["defectnet-nep", "nequix"]
    folder = bundled_potentials()["nequix"]
    assert (licence_of(folder), published.sha256) == ("MIT", file_sha256(folder / WEIGHTS))
    config, card = json.loads((folder / CONFIG).read_text()), (folder / CARD).read_text()
    assert len(config["source"]["sha256"]) == 64
    assert "Permission is hereby granted" in card
    assert "2508.16067" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
    published.check(rattled(0))
    with pytest.raises(SimulationError, match="does not know the element with Z = 85"):
        published.check(Crystal(np.array([85]), np.eye(3) * 5, np.zeros((1, 3))))


def test_what_needs_a_nep_refuses_it(tmp_path, capsys):
    with pytest.raises(SimulationError, match="describes a nequix, not a student"):
        load_nep("nequix")
    assert distil(["export", "--run", "nequix", "--out", str(tmp_path / "out")]) == 2
    assert "describes a nequix, not a student" in capsys.readouterr().err


# -- any network -------------------------------------------------------------------------------------------------------


def test_forces_and_stress_are_derivatives_of_the_energy(folder):
    potential, crystal = in_double(folder), rattled(0)
    found = potential.evaluate(crystal)
    rng, step = np.random.default_rng(1), 1e-5
    for _ in range(3):
        along = rng.normal(size=(len(crystal), 3))
        ahead, behind = (potential.evaluate(crystal.moved(sign * step * along)).energy for sign in (1, -1))
        assert (behind - ahead) / (2 * step) == pytest.approx(float((found.forces * along).sum()), rel=1e-5, abs=1e-6)
        strain = rng.normal(size=(3, 3))
        strain = strain + strain.T
        ahead, behind = (potential.evaluate(crystal.strained(np.eye(3) + s * step * strain)).energy for s in (1, -1))
        expected = float((found.stress * strain).sum()) * crystal.volume
        assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert np.abs(found.forces).max() > 0.01


def test_symmetries(folder):
    potential, crystal = NequixPotential.from_folder(folder), rattled(1)
    found = potential.evaluate(crystal)
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # a rotation, or one with an inversion
    order = rng.permutation(len(crystal))
    moved = crystal.moved(np.full((len(crystal), 3), 0.7))
    permuted = Crystal(crystal.numbers[order], crystal.cell, crystal.positions[order])
    for changed, forces, stress in (
        (moved, found.forces, found.stress),
        (crystal.strained(turn), found.forces @ turn, turn.T @ found.stress @ turn),
        (crystal.strained(-turn), -found.forces @ turn, turn.T @ found.stress @ turn),
        (permuted, found.forces[order], found.stress),
    ):
        result = potential.evaluate(changed)
        assert result.energy == pytest.approx(found.energy, abs=1e-4)
        assert np.abs(result.forces - forces).max() < 1e-4
        assert np.abs(result.stress - stress).max() < 1e-5
    assert np.abs(found.forces.sum(0)).max() < 1e-5


def test_crystals_side_by_side_are_those_alone(folder):
    crystals = [rattled(0), rattled(1), rattled(1, "TiAl"), rattled(2)]
    alone = NequixPotential.from_folder(folder).evaluate_many(crystals)
    together = NequixPotential.from_folder(folder, batch=3).evaluate_many(crystals)
    for one, other in zip(alone, together, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-4)
        assert np.abs(one.forces - other.forces).max() < 1e-4
        assert np.abs(one.stress - other.stress).max() < 1e-5


def test_chunks_of_edges_change_nothing_but_rounding(folder):
    potential, crystal = NequixPotential.from_folder(folder), rattled(1)
    potential.network.chunk = CHUNK
    whole = potential.evaluate(crystal)
    potential.network.chunk = 7
    assert np.abs(potential.evaluate(crystal).forces - whole.forces).max() < 1e-5


def test_compiled_messages_are_those_of_torch(folder):
    potential, crystal = in_double(folder), rattled(1)
    assert potential.network.chunk == 0, "numba comes with defectnet[sim]"
    compiled = potential.evaluate(crystal)
    potential.network.chunk = CHUNK
    result = potential.evaluate(crystal)
    assert np.abs(result.forces - compiled.forces).max() < 1e-10
    assert np.abs(result.stress - compiled.stress).max() < 1e-11


def test_one_displaced_atom_is_what_a_displaced_crystal_is(folder):
    """What is kept from one displacement to the next belongs to edges that do not move."""
    potential, crystal = NequixPotential.from_folder(folder), rattled(1)
    atoms, shifts = [0, 0, 3, 2], np.array([[0.02, 0, 0], [0, 0, -0.3], [0.1, 0.1, 0.1], [0, 0.02, 0]])
    found = potential.displaced_forces(crystal, atoms, shifts)
    for atom, shift, forces in zip(atoms, shifts, found, strict=True):
        displacement = np.zeros((len(crystal), 3))
        displacement[atom] = shift
        assert np.abs(forces - potential.evaluate(crystal.moved(displacement)).forces).max() < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-2
    many = NequixPotential.from_folder(folder, batch=3).displaced_forces(crystal, atoms, shifts)
    assert np.abs(np.array(many) - np.array(found)).max() < 1e-5


def test_hessian_from_forward_differences(folder):
    potential = NequixPotential.from_folder(folder, displacement=0.02)
    crystal = rattled(1)
    hessian = potential.force_constants(crystal).hessian().numpy()
    step = 0.02 * np.random.default_rng(0).normal(size=(len(crystal), 3)) / np.sqrt(3 * len(crystal))
    ahead, behind = (potential.evaluate(crystal.moved(sign * step)).forces for sign in (1, -1))
    expected = (behind - ahead).ravel() / 2
    assert np.abs(hessian @ step.ravel() - expected).max() < 0.1 * np.abs(expected).max()


# -- folders -----------------------------------------------------------------------------------------------------------


def _config(folder, **changes):
    path = folder / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


def _form(folder, **changes):
    form = json.loads((folder / CONFIG).read_text())["form"] | changes
    _config(folder, form={key: value for key, value in form.items() if value is not None})


def _weights(folder, **changes):
    """Change tensors, and the hash with them."""
    tensors = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / WEIGHTS)
    _config(folder, weights_sha256=file_sha256(folder / WEIGHTS))


def _garbage(folder):
    (folder / WEIGHTS).write_bytes(b"no tensors")
    _config(folder, weights_sha256=file_sha256(folder / WEIGHTS))


def _cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / CONFIG).unlink(), "holds no config.json"),
        (lambda f: _config(f, schema_version=99), "schema version 99"),
        (lambda f: _config(f, schema_version=None), "schema_version is missing"),
        (lambda f: _config(f, architecture="mace"), "describes a mace"),
        (lambda f: _config(f, source=None), "source is missing"),
        (lambda f: _form(f, cutoff=None), r"form\.cutoff is missing"),
        (lambda f: _form(f, cutoff=-1.0), r"form\.cutoff is -1"),
        (lambda f: _form(f, colour=1), r"form\.colour is not a known field"),
        (lambda f: _form(f, elements=[13, 13, 29]), "no ascending atomic numbers"),
        (lambda f: _form(f, l_max=9), r"form\.l_max is 9"),
        (lambda f: _form(f, channels=[0, 4]), r"form\.channels are \[0, 4\]"),
        (lambda f: _form(f, radial_width=9), r"has shape \(4, 8\), not \(4, 9\)"),
        (lambda f: (f / WEIGHTS).unlink(), "is missing"),
        (_cut, "truncated"),
        (_garbage, "holds no tensors"),
        (lambda f: _weights(f, readout=None), "readout is missing"),
        (lambda f: _weights(f, more=torch.zeros(2)), "more is unknown"),
        (lambda f: _weights(f, readout=torch.zeros(2)), r"readout has shape \(2,\), not \(6,\)"),
        (lambda f: _weights(f, readout=torch.zeros(6, dtype=torch.int64)), r"readout holds torch\.int64"),
        (lambda f: _weights(f, readout=torch.full((6,), torch.nan)), "readout holds NaN"),
    ],
)
def test_damaged_folders_are_named(change, message, tmp_path):
    save_network(tmp_path / "tiny", FORM, tensors_of(FORM), licence="MIT", source={}, card="")
    assert load_potential(tmp_path / "tiny").name == "tiny"
    change(tmp_path / "tiny")
    with pytest.raises(SimulationError, match=message):
        load_potential(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("value", "message"), [(torch.full((6,), torch.inf), "readout holds NaN or infinity"), (torch.zeros(2), "shape")]
)
def test_broken_networks_are_not_saved(value, message, tmp_path):
    with pytest.raises(SimulationError, match=message):
        save_network(tmp_path / "x", FORM, {**tensors_of(FORM), "readout": value}, licence="MIT", source={}, card="")
    assert not list(tmp_path.iterdir())


# -- files of the package ----------------------------------------------------------------------------------------------


def test_files_that_are_not_there(tmp_path, capsys):
    assert convert([str(tmp_path / "absent.nqx"), "--out", str(tmp_path / "out")]) == 2
    assert "absent.nqx does not exist" in capsys.readouterr().err


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
    """A tiny random network in a file of the package."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    pytest.importorskip("nequix", reason="the package, see docs/potentials.md")
    import jax
    from nequix.model import Nequix, save_model

    config = {
        "atomic_numbers": list(ELEMENTS),
        "cutoff": 4.0,
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


def test_same_as_the_calculator_of_the_package(weights, tmp_path):
    from ase import Atoms
    from nequix.calculator import NequixCalculator

    assert convert([str(weights), "--out", str(tmp_path / "mine"), "--licence", "MIT"]) == 0
    converted = load_potential(tmp_path / "mine")
    assert converted.name == "mine"
    assert json.loads((tmp_path / "mine" / CONFIG).read_text())["source"]["sha256"] == file_sha256(weights)
    calculator = NequixCalculator(model_path=str(weights), backend="jax", use_kernel=False)
    for crystal in (rattled(0), rattled(1), rattled(1, "TiAl"), rattled(2)):
        atoms = Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True, calculator=calculator)
        ours = converted.evaluate(crystal)
        assert ours.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        assert np.abs(ours.forces - atoms.get_forces()).max() < 1e-4
        assert np.abs(ours.stress - atoms.get_stress(voigt=False)).max() < 1e-5
        assert np.abs(ours.forces).max() > 0.01


def test_features_of_two_parities_are_refused(tmp_path, capsys):
    path = write_network(tmp_path / "odd.nqx", **{**SIZES["plain"], "hidden_irreps": "4x0e + 2x1o + 2x1e"})
    assert convert([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "parity" in capsys.readouterr().err


def test_broken_files_of_the_package(weights, tmp_path, capsys):
    (tmp_path / "cut.nqx").write_bytes(weights.read_bytes()[:900])
    (tmp_path / "text.nqx").write_text(json.dumps({"a": 1}) + "\n")
    for name in ("cut.nqx", "text.nqx"):
        assert convert([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert "is no Nequix network, or truncated" in capsys.readouterr().err
