"""Training of a fast potential by a slow one: labels, the student, the task, and its command."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import save_file

from crystals import entry
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import write_shard
from defectnet.data.splits import split_of
from defectnet.distil.__main__ import main
from defectnet.distil.batch import Example, PairCache, collate
from defectnet.distil.calibrate import calibrate, curvature_share
from defectnet.distil.data import DistilDataModule, ExampleLoader
from defectnet.distil.labels import (
    Curved,
    Record,
    chemical_systems,
    read_curved,
    read_labels,
    structures,
    write_labels,
)
from defectnet.distil.task import DistilTask, load_student
from defectnet.elements import NUMBERS, VOCABULARY
from defectnet.errors import ConfigError, DefectNetError, ShardError, SimulationError
from defectnet.files import file_sha256
from defectnet.potentials.folder import bundled_potentials, save_student
from defectnet.potentials.form import StudentConfig
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import NEP
from defectnet.potentials.potential import FastPotential, load_potential, potential_names
from defectnet.potentials.relax import relax
from defectnet.potentials.student import Student
from defectnet.simulate.hessians import hessian_file, write_hessians
from defectnet.tasks.defect import OptimiserSettings
from make_labels import LabelSettings, choose_hosts, host_weights, make_labels
from make_labels import main as label
from make_potential import write_tiny_nep
from make_shards import toy_sample

DATA = Path(__file__).parent.parent / "data"

HOSTS = {"MgO": 4.21, "LiF": 4.03, "CaO": 4.81, "NaCl": 5.64, "KCl": 6.29, "NaF": 4.63}
"""Rock salts and their lattice constants, angstrom; K-Cl and F-Na belong to the validation split."""

SYMBOLS = ("Li", "O", "F", "Na", "Mg", "Cl", "K", "Ca")
SMALL = {"cutoff_radial": 4.0, "cutoff_angular": 3.5, "n_radial": 3, "n_angular": 2, "basis_radial": 5, "neurons": 8}
SMALL |= {"basis_angular": 4, "embedding": 6, "rank": 5, "net_rank": 3}


def cell(name, seed, amplitude=0.05, dopant=None):
    """An eight-atom rock salt with atoms moved at random, perhaps with one of another element."""
    atoms = bulk(name, "rocksalt", a=HOSTS[name], cubic=True)
    if dopant:
        atoms.symbols[0] = dopant
    atoms.positions += np.random.default_rng(seed).normal(0.0, amplitude, atoms.positions.shape)
    return Crystal(atoms.numbers.astype(np.int64), atoms.cell.array.copy(), atoms.positions.copy())


def record(potential, crystal, name, step=9, doped=False):
    said = potential.evaluate(crystal)
    return Record(crystal, said.energy, said.forces, said.stress, f"id-{name}", doped, step)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return NEP.from_file(
        write_tiny_nep(tmp_path_factory.mktemp("teacher") / "tiny.txt", SYMBOLS, seed=3, l_max="4 2 0")
    )


@pytest.fixture(scope="module")
def records(teacher):
    """Two pristine cells of each host, and four of a doped one: as substituted, on the way, and two at the end."""
    out = []
    for k, name in enumerate(HOSTS):
        out += [record(teacher, cell(name, 10 * k + i), name, step=9 * i) for i in range(2)]
        for i, step in enumerate((0, 2, 9, 9)):
            out.append(record(teacher, cell(name, 10 * k + 5 + i, dopant="Li"), name, step, doped=True))
    return out


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """Two label files and the list of their hosts."""
    folder = tmp_path_factory.mktemp("labels")
    write_labels(folder / "labels-1.npz", records[:20])
    write_labels(folder / "labels-2.npz", records[20:])
    entries = [entry(bulk(name, "rocksalt", a=a, cubic=True), f"id-{name}") for name, a in HOSTS.items()]
    (folder / "hosts.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def data_of(folder, **settings):
    settings = {"batch_atoms": 64, "hosts": str(folder / "hosts.json"), **settings}
    data = DistilDataModule([str(folder / "labels-*.npz")], **settings)
    data.cutoff = SMALL["cutoff_radial"]
    return data


def batch_of(examples, cutoff):
    cache = PairCache(cutoff)
    return collate(examples, [cache.pairs(k, example) for k, example in enumerate(examples)])


def awake(config=None, seed=0, **fields):
    """A student with random numbers, references and scales."""
    torch.manual_seed(seed)
    student = Student(config or StudentConfig.from_dict({**SMALL, **fields}))
    with torch.no_grad():
        student.scaler.uniform_(0.2, 1.0)
        student.references.normal_()
        student.net_terms.add_(0.1 * torch.randn_like(student.net_terms))
        student.pair_terms.add_(0.1 * torch.randn_like(student.pair_terms))
    return student


# -- labels ----------------------------------------------------------------------------------------------------


def test_labels_come_back(records, tmp_path):
    write_labels(tmp_path / "labels.npz", records)
    found = read_labels(tmp_path / "labels.npz")
    assert len(found) == len(records)
    for ours, theirs in zip(found, records, strict=True):
        assert (ours.host, ours.doped, ours.step) == (theirs.host, theirs.doped, theirs.step)
        assert ours.energy == theirs.energy
        assert np.array_equal(ours.crystal.numbers, theirs.crystal.numbers)
        apart = (ours.crystal.frac - theirs.crystal.frac + 0.5) % 1.0 - 0.5
        assert np.abs(apart).max() <= 0.5 / 65536 + 1e-9
        assert np.allclose(ours.forces, theirs.forces, rtol=1e-3, atol=1e-6)
        assert np.allclose(ours.stress, theirs.stress, rtol=1e-6)
    write_labels(tmp_path / "again.npz", found)
    again = read_labels(tmp_path / "again.npz")
    assert all(np.array_equal(a.crystal.positions, b.crystal.positions) for a, b in zip(again, found, strict=True))
    write_labels(tmp_path / "none.npz", [])
    assert read_labels(tmp_path / "none.npz") == []


def damaged(arrays, name, value):
    return {**arrays, name: value(arrays[name])}


DAMAGE = {
    "forces": lambda x: x[:-1],
    "frac": lambda x: x.astype(np.int32),
    "energy": lambda x: np.full_like(x, np.nan),
    "numbers": lambda x: np.full_like(x, 43),
    "cell": np.zeros_like,
    "natoms": lambda x: x + 1,
    "doped": lambda x: x.astype(np.int8),
    "host": lambda x: np.arange(len(x)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_labels_are_named(name, folder, tmp_path):
    with np.load(folder / "labels-1.npz") as file:
        arrays = damaged(dict(file), name, DAMAGE[name])
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(SimulationError, match=r"bad\.npz"):
        read_labels(tmp_path / "bad.npz")


def test_files_that_are_no_labels(folder, tmp_path, records, teacher):
    whole = (folder / "labels-1.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    for name in ("short.npz", "other.npz", "absent.npz", "single.npz"):
        with pytest.raises(SimulationError, match=name):
            read_labels(tmp_path / name)
    with pytest.raises(SimulationError, match="forces"):  # too large for half precision
        write_labels(tmp_path / "large.npz", [replace(records[0], forces=records[0].forces + 1e6)])
    assert not (tmp_path / "large.npz").exists()


def test_structures(records, folder):
    systems = chemical_systems(read_hosts(folder / "hosts.json"))
    found = structures(records, systems)
    assert [len(s.records) for s in found] == [2, 4] * len(HOSTS)
    assert found[0].differences == ((0, 1),)
    assert found[1].differences == ((1, 2), (2, 3))  # the cell as substituted is far from equilibrium
    assert found[1].chemical_system == "Mg-O"  # not Li-Mg-O
    with pytest.raises(SimulationError, match="id-MgO"):
        structures(records, {})
    with pytest.raises(SimulationError, match="pristine cell of id-MgO holds Mg-O"):
        structures(records, systems | {"id-MgO": "Ca-O"})


def test_lengths_in_another_unit_are_named(records, tmp_path):
    large = [replace(r, crystal=replace(r.crystal, cell=r.crystal.cell * 10)) for r in records]
    with pytest.raises(SimulationError, match="cubic angstrom an atom"):
        write_labels(tmp_path / "labels.npz", large)


def test_hosts_of_several_lists(folder, tmp_path):
    (tmp_path / "more.json").write_text('[{"id": "zb", "cell": [4, 4, 4, 60, 60, 60], "species": ["Be", "S"], ')
    with pytest.raises(SimulationError, match=r"more\.json"):
        read_hosts(folder / "hosts.json", tmp_path / "more.json")
    entry = {"id": "zb", "cell": [4, 4, 4, 60, 60, 60], "species": ["Be", "S"], "frac": [[0, 0, 0], [0.25] * 3]}
    (tmp_path / "more.json").write_text(json.dumps([entry]))
    both = read_hosts(folder / "hosts.json", tmp_path / "more.json")
    assert [host.id for host in both] == [host.id for host in read_hosts(folder / "hosts.json")] + ["zb"]
    with pytest.raises(SimulationError, match=r"hosts\.json and .*'id-MgO' twice"):
        read_hosts(folder / "hosts.json", folder / "hosts.json")


def test_bundled_labels_are_of_listed_hosts_outside_the_test_split():
    systems = chemical_systems(read_hosts(DATA / "hosts.json.xz", DATA / "teacher" / "prototypes.json"))
    found = [
        s for path in sorted((DATA / "teacher").glob("labels-*.npz")) for s in structures(read_labels(path), systems)
    ]
    assert len(found) > 2000
    # The first file was made before splits were drawn; training leaves its test crystals out.
    assert sum(s.split == "test" for s in found) < 0.05 * len(found)
    assert not any(split_of(system) == "test" for name, system in systems.items() if name.startswith("prototype"))


def test_no_chemical_system_is_in_two_splits(folder):
    data = data_of(folder)
    numbers = {split: {tuple(e.crystals[0].numbers) for e in data.examples(split)} for split in ("train", "val")}
    assert numbers["train"]
    assert numbers["val"]
    assert not numbers["train"] & numbers["val"]
    assert {17, 19} in [set(n) for n in numbers["val"]]
    with pytest.raises(ConfigError, match="test"):
        data.examples("test")
    with pytest.raises(ConfigError, match="match no file"):
        DistilDataModule([str(folder / "nothing-*.npz")]).examples("train")


# -- Hessians --------------------------------------------------------------------------------------------------


def test_hessian_gives_the_change_of_forces(teacher):
    """F(x + u) - F(x - u) = -2 H u: sign, factor and order, against the potential itself."""
    crystal = cell("MgO", 1, amplitude=0.01)
    hessian = load_hessian(teacher, crystal)
    displacement = np.random.default_rng(0).normal(0.0, 1e-3, (len(crystal), 3))
    (plus, minus), change = Curved(crystal, hessian, "Mg-O").displaced(displacement)
    found = teacher.evaluate(plus).forces - teacher.evaluate(minus).forces
    assert np.abs(found).max() > 1e-3
    assert np.abs(found - change).max() < 1e-3 * np.abs(found).max()


def load_hessian(model, crystal):
    from defectnet.potentials.hessian import force_constants

    return force_constants(model, crystal).hessian().numpy()


def test_kept_hessians_are_read(teacher, tmp_path):
    sample = toy_sample(0)
    shard = tmp_path / "shard-00000.parquet"
    write_shard(shard, [sample], {})
    crystal = cell("MgO", 1)
    write_hessians(hessian_file(shard), {sample.row_id: (crystal, load_hessian(teacher, crystal))})
    (found,) = read_curved(tmp_path)
    assert found.chemical_system == sample.chemical_system
    assert found.split == sample.split
    assert np.array_equal(found.crystal.numbers, crystal.numbers)
    write_hessians(hessian_file(shard), {"unknown/0": (crystal, load_hessian(teacher, crystal))})
    with pytest.raises(SimulationError, match="unknown/0"):
        read_curved(tmp_path)
    for path in tmp_path.glob("hessians-*"):
        path.unlink()
    with pytest.raises(SimulationError, match="no Hessians"):
        read_curved(tmp_path)
    with pytest.raises(ShardError, match="does not exist"):
        read_curved(tmp_path / "nowhere")


# -- the student -----------------------------------------------------------------------------------------------


def test_forces_are_the_slope_of_the_energy():
    nep = awake().potential()
    crystal = cell("MgO", 4)
    forces, step = nep.evaluate(crystal).forces, 1e-4
    assert np.abs(forces).max() > 0.05
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        shift = np.zeros((len(crystal), 3))
        shift[atom, axis] = step
        slope = (nep.evaluate(crystal.moved(shift)).energy - nep.evaluate(crystal.moved(-shift)).energy) / (2 * step)
        assert -slope == pytest.approx(forces[atom, axis], abs=1e-6)


@pytest.mark.parametrize("floats", [torch.float64, torch.float32], ids=str)
def test_a_batch_says_what_cells_say(floats, records, folder):
    student = awake()
    found = structures(records, chemical_systems(read_hosts(folder / "hosts.json")))[:3]
    batch = batch_of([Example.of_labels(s) for s in found], student.config.cutoff).to(floats)
    energy, forces, stress = student(batch)
    assert energy.dtype == forces.dtype == floats
    nep, cells = student.potential(), [r.crystal for s in found for r in s.records]
    said = [nep.evaluate(crystal) for crystal in cells]
    assert np.abs(forces.detach().numpy() - np.concatenate([s.forces for s in said])).max() < 1e-4
    assert np.abs(stress.detach().numpy() - np.stack([s.stress for s in said])).max() < 1e-5
    place = {z: k for k, z in enumerate(NUMBERS.tolist())}
    references = [float(student.references[[place[z] for z in c.numbers.tolist()]].sum()) for c in cells]
    expected = np.array([s.energy for s in said]) + references
    assert np.allclose(energy.detach().numpy(), expected, atol=1e-3)
    assert torch.equal(batch.volume, torch.tensor([c.volume for c in cells], dtype=floats)) or floats == torch.float64


@pytest.mark.parametrize("fields", [{}, {"four_body": False, "five_body": False, "zbl_inner": 0.0, "zbl_outer": 0.0}])
def test_export_is_the_same_potential(fields, tmp_path):
    student = awake(**fields)
    written = student.export(tmp_path / "mine.txt")
    assert written.name == "mine"
    loaded = load_potential(tmp_path / "mine.txt")
    for name in ("MgO", "KCl"):
        crystal = cell(name, 2)
        ours, theirs = student.potential().evaluate(crystal), loaded.evaluate(crystal)
        assert np.abs(ours.forces).max() > 0.01
        assert np.abs(ours.forces - theirs.forces).max() < 1e-5
        assert ours.energy == pytest.approx(theirs.energy, abs=1e-5)


def test_broken_numbers_are_not_written(tmp_path):
    student = awake()
    with torch.no_grad():
        student.net_base[0] = float("nan")
    with pytest.raises(SimulationError, match="NaN"):
        student.export(tmp_path / "broken.txt")
    assert not list(tmp_path.iterdir())


def test_an_element_that_was_never_seen_gets_numbers_by_its_embedding():
    """Learned residuals apart, what an element gets follows from its properties, smoothly."""
    student = awake()
    with torch.no_grad():
        student.residual.zero_()
    tables = student.tables()
    for name in ("w0", "w1", "c_radial", "c_angular"):
        assert bool(torch.isfinite(getattr(tables, name)).all())
    place = [VOCABULARY.index(s) for s in ("Rb", "K", "F")]
    rubidium, potassium, fluorine = tables.c_radial[place]
    assert float((rubidium - potassium).norm()) < 0.5 * float((rubidium - fluorine).norm())
    assert float((rubidium - potassium).norm()) > 0.0


def test_references_are_least_squares(records, folder):
    """Energies that are sums over atoms leave nothing but what the potential says."""
    student = awake()
    truth = dict(zip(NUMBERS.tolist(), np.linspace(-9.0, -1.0, len(NUMBERS)), strict=True))
    nep = student.potential()
    made = [
        replace(r, energy=nep.evaluate(r.crystal).energy + sum(truth[z] for z in r.crystal.numbers)) for r in records
    ]
    found = structures(made, chemical_systems(read_hosts(folder / "hosts.json")))
    batch = batch_of([Example.of_labels(s) for s in found], student.config.cutoff).to(torch.float64)
    student._fit_references([batch])
    error = (student(batch)[0] - batch.energy) / batch.sizes
    assert float(error.abs().max()) < 0.01
    assert bool(torch.isfinite(student.references).all())


@pytest.mark.parametrize(
    "wrong", [{"n_radial": 0}, {"cutoff_angular": 9.0}, {"zbl_inner": 3.0}, {"l_max": 1}, {"neurones": 3}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ConfigError, match=r"student|StudentConfig"):
        StudentConfig.from_dict(wrong)


# -- training --------------------------------------------------------------------------------------------------


def test_batches_hold_every_structure_once(folder):
    data = data_of(folder)
    loader = data.loader("train", shuffle=True)
    assert len(loader) > 1
    for epoch in range(2):
        plan = loader.plan(epoch)
        assert sorted(n for batch in plan for n in batch) == list(range(len(data.examples("train"))))
        assert len(plan) == len(loader)
    assert loader.plan(0) != loader.plan(1)
    assert data_of(folder).loader("train", shuffle=True).plan(1) == loader.plan(1)


def test_a_cache_without_room_gives_the_same(folder):
    data = data_of(folder)
    examples = data.examples("val")
    with_room, without = (ExampleLoader(examples, PairCache(4.0, g), 64, None) for g in (1.0, 0.0))
    for _ in range(2):
        for one, other in zip(with_room, without, strict=True):
            assert torch.equal(one.pairs.vector, other.pairs.vector)
            assert torch.equal(one.pairs.centre, other.pairs.centre)


def trainer_for(folder, steps, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"enable_checkpointing": False, "num_sanity_val_steps": 0, **quiet, **settings}
    return Trainer(max_steps=steps, max_epochs=-1, default_root_dir=folder, **settings)


def task_of(**fields):
    torch.manual_seed(0)
    student = {**SMALL, **fields.pop("student", {})}
    settings = OptimiserSettings(learning_rate=3e-3, weight_decay=0.0, warmup_share=0.0, decay=False)
    return DistilTask(student, optimiser=settings, **fields)


def test_a_student_learns_curvature(folder, tmp_path):
    """A student of the teacher's form comes near to it on the cells that it is shown."""
    data = data_of(folder, batch_atoms=400)
    data.val_dataloader = lambda: data.loader("train")  # what is asked here is whether it can fit
    form = {"cutoff_radial": 5.0, "cutoff_angular": 4.0, "n_radial": 5, "n_angular": 5, "basis_radial": 9}
    form |= {"basis_angular": 9, "five_body": False, "neurons": 10, "rank": 24, "embedding": 12, "net_rank": 8}
    task = task_of(student=form)
    before = trainer_for(tmp_path, 0).validate(task, data, verbose=False)[0]
    trainer = trainer_for(tmp_path, 100, limit_val_batches=0)
    trainer.fit(task, data)
    after = trainer_for(tmp_path, 0).validate(task, data, verbose=False)[0]
    print(before, after)
    assert before["val/difference_error"] > 0.8
    assert after["val/difference_error"] < 0.25
    assert after["val/force_mae"] < 0.3 * before["val/force_mae"]


def test_hessians_teach(teacher, tmp_path, folder):
    """Where only a Hessian is known, its products are what the loss and the metric compare."""
    crystal = cell("MgO", 1, amplitude=0.0)
    curved = Curved(crystal, load_hessian(teacher, crystal), "Mg-O")
    rng = np.random.default_rng(0)
    task = task_of()
    batch = batch_of([Example.of_hessian(curved, rng.normal(0.0, 0.02, (8, 3))) for _ in range(4)], 5.0)
    assert not batch.labelled.any()
    terms, _ = task._terms(batch)
    assert float(terms["hessians"]) > 0.0
    assert float(terms["forces"]) == float(terms["energy"]) == float(terms["differences"]) == 0.0
    _, forces, _ = teacher.forces_many(*teacher_view(teacher, batch))
    wrong, right = task._changes(batch.to(torch.float64), forces, 0.0)
    assert float((wrong / right).sqrt().max()) < 0.05  # what is left is the third order
    # by mass: what the light atom of MgO does counts 24.3 / 16.0 times as much
    only = {z: forces.clone() for z in (8, 12)}
    numbers = torch.from_numpy(NUMBERS[batch.types.numpy()])
    for z, changed in only.items():
        changed[(numbers == z)] += 0.1 * torch.randn(int((numbers == z).sum()), 3, generator=torch.manual_seed(0))
    plain = [task._changes(batch.to(torch.float64), changed, 0.0)[0].mean() for changed in only.values()]
    by_mass = [task._changes(batch.to(torch.float64), changed, 1.0)[0].mean() for changed in only.values()]
    ratio = (by_mass[0] / by_mass[1]) / (plain[0] / plain[1])
    assert float(ratio) == pytest.approx(24.305 / 15.999, rel=1e-2)


def teacher_view(teacher, batch):
    """A batch as the teacher counts species."""
    numbers = NUMBERS[batch.types.numpy()]
    types = torch.tensor([teacher.parameters.species.index(z) for z in numbers.tolist()])
    batch = batch.to(torch.float64)
    return types, batch.pairs, batch.bounds


def test_a_resumed_run_is_the_same_run(folder, tmp_path):
    """Killed after four steps, in the middle of the second epoch."""

    def run(*callbacks, **settings):
        task = task_of()
        callbacks = [EMAWeightAveraging(decay=0.5), *callbacks]
        settings = {"weights_only": False, **settings}
        trainer = trainer_for(tmp_path, 7, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(task, data_of(folder), **settings)
        return task

    whole = run(ModelCheckpoint(tmp_path, filename="part", every_n_train_steps=4))
    resumed = run(ModelCheckpoint(tmp_path, filename="rest", every_n_train_steps=7), ckpt_path=tmp_path / "part.ckpt")
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    student, part = load_student(tmp_path / "rest.ckpt"), load_student(tmp_path / "part.ckpt")
    assert torch.equal(student.net_base, whole.student.net_base)  # the average
    assert not torch.equal(student.net_base, part.net_base)
    assert float(student.prepared) == 1.0
    assert float(student.references.abs().max()) > 0.0


# -- the command -----------------------------------------------------------------------------------------------


def test_command(folder, tmp_path, capsys):
    words = ["fit", "-c", "configs/potential-small.yaml", f"--data.labels=[{folder / 'labels-*.npz'}]"]
    words += [f"--data.hosts={folder / 'hosts.json'}", "--data.hessians=null", "--trainer.logger=false"]
    words += ["--trainer.max_steps=3", "--trainer.val_check_interval=1", "--trainer.callbacks=null"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false", "--model.student.rank=4"]
    assert main([*words, "--trainer.accelerator=cpu"]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    out = tmp_path / "out.txt"
    assert main(["export", "--run", str(checkpoint), "--out", str(out)]) == 0
    assert load_student(checkpoint).config.rank == 4
    ours = load_student(checkpoint).potential().evaluate(cell("MgO", 1)).forces
    assert np.abs(ours - load_potential(out).evaluate(cell("MgO", 1)).forces).max() < 1e-5
    again = DistilTask(init_from=str(checkpoint))  # goes on with another run's student
    assert again.student.config == load_student(checkpoint).config
    assert torch.equal(again.student.net_base, load_student(checkpoint).net_base)
    assert bool(again.student.prepared)
    assert main(["export", "--run", str(checkpoint), "--out", str(tmp_path / "folder")]) == 0
    kept = DistilTask(init_from=str(tmp_path / "folder")).student
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.student.parameters(), strict=True))
    capsys.readouterr()
    assert main(["export", "--run", str(out), "--out", str(tmp_path / "x.txt")]) == 2
    assert "no checkpoint of a student" in capsys.readouterr().err
    with pytest.raises(DefectNetError, match="does not exist"):
        load_student(tmp_path / "absent.ckpt")


# -- folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    student = awake()
    save_student(tmp_path / "mine", student, licence="MIT", training={"steps": 1}, card="# mine\n")
    return student, tmp_path / "mine"


def test_a_folder_is_the_same_potential(saved):
    student, folder = saved
    loaded = load_potential(folder)
    assert (loaded.name, len(loaded.sha256)) == ("mine", 64)
    ours, theirs = student.potential().evaluate(cell("KCl", 2)), loaded.evaluate(cell("KCl", 2))
    assert np.abs(ours.forces).max() > 0.01
    assert np.abs(ours.forces - theirs.forces).max() < 1e-5  # single precision made ours
    save_student(folder, student, licence="MIT", training={}, card="")  # again, over it
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}


@pytest.mark.parametrize("name", ["thesis.txt", "README.md"])
def test_folders_of_other_things_are_not_replaced(name, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / name).write_text("mine")
    assert main(["export", "--run", "defectnet-nep", "--out", str(tmp_path / "precious")]) == 2
    (tmp_path / "file").write_text("kept")
    assert main(["export", "--run", "defectnet-nep", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "precious exists and holds other files" in capsys.readouterr().err
    assert (tmp_path / "precious" / name).read_text() == "mine"


def test_a_copy_keeps_the_licence(tmp_path, saved):
    student, folder = saved
    save_student(folder, student, licence="GPL-3.0", training={}, card="")
    assert main(["export", "--run", str(folder), "--out", str(tmp_path / "copy")]) == 0
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["licence"] == "GPL-3.0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--light-dopants", "Xx"], "light_dopants"),
        (["--light", "2"], "light is 2"),
        (["--highest", "0"], "highest is 0"),
        (["--batch", "0"], "--batch 0"),
        (["--count", "0"], "--count 0"),
    ],
)
def test_labels_refuse_nonsense_before_anything_is_computed(words, message, tmp_path, capsys):
    out = tmp_path / "new" / "labels.npz"
    teacher = ["--teacher", "defectnet-nep", "--guide", "defectnet-nep"]
    assert label([*teacher, "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def _edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not an object"),
        (lambda f: _edit(f, schema_version=99), "Upgrade"),
        (lambda f: _edit(f, licence=None), "licence is missing"),
        (lambda f: _edit(f, form={"rank": "many"}), "form.rank"),
        (lambda f: _edit(f, form={"rank": 3}), "does not hold what"),
        (lambda f: (f / "model.safetensors").unlink(), "is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"short"), "truncated"),
    ],
)
def test_damaged_folders_are_named(change, message, saved):
    _, folder = saved
    change(folder)
    with pytest.raises(SimulationError, match=message):
        load_potential(folder)


def test_weights_that_are_not_numbers_are_not_loaded(saved):
    student, folder = saved
    state = {name: value.clone() for name, value in student.state_dict().items()}
    state["net_base"][0] = float("inf")
    save_file(state, folder / "model.safetensors")
    _edit(folder, weights_sha256=file_sha256(folder / "model.safetensors"))
    with pytest.raises(SimulationError, match="net_base holds NaN or infinity"):
        load_potential(folder)


def test_broken_weights_are_not_saved(tmp_path):
    student = awake()
    with torch.no_grad():
        student.net_base[0] = float("nan")
    with pytest.raises(SimulationError, match="net_base holds NaN"):
        save_student(tmp_path / "broken", student, licence="MIT", training={}, card="")
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(SimulationError, match="nep89"):
        load_potential("nep98")
    assert set(bundled_potentials()) < set(potential_names())


def test_bundled_potentials_hold_all_elements():
    for name, folder in bundled_potentials().items():
        potential = load_potential(name.upper())
        assert potential.name == name
        for number in NUMBERS.tolist():
            potential.check(Crystal(np.array([number]), 5.0 * np.eye(3), np.zeros((1, 3))))
        assert np.abs(potential.evaluate(cell("MgO", 0, amplitude=0.02)).forces).max() < 3.0
        assert "licence" in (folder / "README.md").read_text().lower()
        assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20


def test_calibration_finds_what_is_missing(folder, teacher):
    """A student with four fifths of the curvature of another, which made the labels."""
    whole = awake()
    records = [
        replace(r, forces=whole.potential().evaluate(r.crystal).forces)
        for path in sorted(folder.glob("labels-*.npz"))
        for r in read_labels(path)
    ]
    data = data_of(folder)
    found = structures(records, chemical_systems(read_hosts(folder / "hosts.json")))
    data._examples = {s: [Example.of_labels(x) for x in found if x.split == s] for s in ("train", "val", "test")}
    assert curvature_share(whole, data) == pytest.approx(1.0, abs=0.02)
    soft = awake()
    soft.amplify(0.8)
    crystal = cell("KCl", 3)
    forces = whole.potential().evaluate(crystal).forces
    assert np.abs(soft.potential().evaluate(crystal).forces - forces).max() > 0.01
    assert calibrate(soft, data) == pytest.approx(1.25, rel=0.05)  # ZBL is the same in both
    assert np.abs(soft.potential().evaluate(crystal).forces - forces).max() < 0.05 * np.abs(forces).max()


# -- making labels ---------------------------------------------------------------------------------------------


def test_labels_are_made_and_gone_on_with(teacher, folder, tmp_path):
    teacher = FastPotential(teacher)
    hosts = choose_hosts(read_hosts(folder / "hosts.json"))
    settings = LabelSettings(atoms=(8, 8, 16), pristine=0.5, light=1.0, light_dopants=SYMBOLS)
    out = tmp_path / "labels-9.npz"
    lines = list(make_labels(teacher, teacher, hosts, out, count=4, seed=1, settings=settings))
    assert len(lines) == 4
    whole = read_labels(out)
    assert {record.step for record in whole} >= {0, 9}
    known = {record.host for record in whole}
    assert known <= {host.id for host in hosts}
    for record in whole:
        said = teacher.evaluate(record.crystal)
        assert np.abs(said.forces - record.forces).max() < 0.02 + 2e-3 * np.abs(said.forces).max()
    # two side by side: the same records
    pair = tmp_path / "labels-7.npz"
    assert list(make_labels(teacher, teacher, hosts, pair, count=4, seed=1, batch=2, settings=settings)) == lines
    for one, other in zip(whole, read_labels(pair), strict=True):
        assert np.abs(one.forces - other.forces).max() < 2e-3
    # a run that was stopped after two: the same file in the end
    part = tmp_path / "labels-8.npz"
    first = make_labels(teacher, teacher, hosts, part, count=2, seed=1, settings=settings)
    assert len(list(first)) == 2
    part.with_suffix(".done").write_text(f"2 {len(read_labels(part))}")
    assert len(list(make_labels(teacher, teacher, hosts, part, count=4, seed=1, settings=settings))) == 2
    assert part.read_bytes() == out.read_bytes()
    # killed after the labels of the second half were written, before that was noted: none of them twice
    half = sum(int(line.split(": ")[1].split()[0]) for line in lines[:2])
    part.with_suffix(".done").write_text(f"2 {half}")
    list(make_labels(teacher, teacher, hosts, part, count=4, seed=1, settings=settings))
    assert part.read_bytes() == out.read_bytes()
    with pytest.raises(SimulationError, match="are there, finished"):
        next(make_labels(teacher, teacher, hosts, part, count=4, seed=1, settings=settings))


def test_labels_of_strongly_doped_cells_find_their_volume(teacher, folder, tmp_path):
    hosts = choose_hosts(read_hosts(folder / "hosts.json"))
    found = {}
    for cell in ("fixed", "volume"):
        settings = LabelSettings(
            atoms=(8, 8, 16), pristine=0.0, light=1.0, light_dopants=SYMBOLS, highest=0.6, cell=cell, strain=0.05
        )
        potential, out = FastPotential(teacher), tmp_path / f"{cell}.npz"
        list(make_labels(potential, potential, hosts, out, count=6, seed=3, settings=settings))
        found[cell] = structures(read_labels(out), chemical_systems(hosts))
    shares = [
        np.mean([int(z) not in host for z in one.records[0].crystal.numbers])
        for one in found["volume"]
        for host in [{int(z) for h in hosts if h.id == one.records[0].host for z in h.crystal.numbers}]
    ]
    assert max(shares) > 0.3
    pressure = {
        cell: np.median([abs(np.trace(one.records[-2].stress)) for one in made]) for cell, made in found.items()
    }
    assert pressure["volume"] < 0.5 * pressure["fixed"]


class TooLarge(FastPotential):
    """Pulls every crystal apart: a guide that goes astray."""

    def evaluate(self, crystal):
        said = super().evaluate(crystal)
        return replace(said, stress=said.stress - 0.05 * np.eye(3), energy=said.energy - 0.05 * crystal.volume)


def test_labels_where_a_student_goes_astray(teacher, folder, tmp_path):
    potential = FastPotential(teacher)
    hosts = [
        replace(host, crystal=relax(potential, host.crystal, cell="full").crystal)
        for host in choose_hosts(read_hosts(folder / "hosts.json"))
        if host.formula != "MgO"  # which this teacher distorts
    ]
    settings = LabelSettings(atoms=(8, 8, 16), pristine=1.0, astray=0.15)
    out = tmp_path / "kept.npz"
    lines = list(make_labels(potential, potential, hosts, out, count=4, seed=1, settings=settings))
    assert all("keeps the volume" in line for line in lines), lines
    assert not read_labels(out)
    out = tmp_path / "astray.npz"
    lines = list(make_labels(potential, TooLarge(teacher), hosts, out, count=4, seed=1, settings=settings))
    found = structures(read_labels(out), chemical_systems(hosts))
    assert found
    assert all(len(one.records) == 6 for one in found)
    for one in found:
        first, last = one.records[0].crystal.volume, one.records[-2].crystal.volume
        assert 1.15 < last / first < 1.45
        said = potential.evaluate(one.records[-2].crystal)  # the teacher's word, not the guide's
        assert one.records[-2].stress == pytest.approx(said.stress, abs=2e-3)
    with pytest.raises(ConfigError, match="astray is"):
        LabelSettings(astray=0.5)


def test_hosts_that_may_teach(folder):
    hosts = read_hosts(folder / "hosts.json")
    chosen = choose_hosts(hosts, [225])
    assert {split_of(host.chemical_system) for host in chosen} <= {"train", "val"}
    with pytest.raises(SimulationError, match="no host is left"):
        choose_hosts(hosts, [216])
    weights = host_weights(chosen, Counter({NUMBERS[VOCABULARY.index("Mg")]: 1000}))
    rare = {host.formula: weight for host, weight in zip(chosen, weights, strict=True)}
    assert weights.sum() == pytest.approx(1.0)
    assert min(rare, key=rare.get).startswith("Mg")
