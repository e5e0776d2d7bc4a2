"""Host packs: what is saved is what is loaded, and making them can be interrupted at any time."""

from __future__ import annotations

import json
import shutil
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from defectnet.crystal import make
from defectnet.crystal.make import MakeSettings, Progress, choose_dopants, make_packs
from defectnet.crystal.pack import HostPack, _host_pairs, _local_pairs, bundled_packs, find_pack
from defectnet.crystal.pairs import expanded, fixing, reduced
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.errors import SimulationError
from defectnet.processes import forking
from host_models import host_of, largest, model, single, site_of

SETTINGS = MakeSettings(potential="defectnet-nep", atoms=16, starts=0)
Q = [np.zeros(3), np.array([0.25, 0.25, 0.25])]
CELL = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])


def pack_of(name: str, *pairs: tuple[str, str], step: float = 0.03, atoms: int = 16) -> HostPack:
    host = model(name, atoms)
    return HostPack(host, {(x, site_of(host, z)): single(name, x, z, atoms, step=step) for x, z in pairs})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- saving and loading ------------------------------------------------------------------------------------------------

SAVED = {
    "zincblende": ("GaAs", [("In", "Ga"), ("N", "As"), ("Al", "Ga")]),
    "off its site": ("MgO", [("Be", "Mg"), ("Ca", "Mg")]),
    "wurtzite": ("AlN-wurtzite", [("Ga", "Al"), ("P", "N")]),
    "rutile": ("SnO2-rutile", [("Ge", "Sn"), ("F", "O")]),
}


@pytest.fixture(scope="module", params=SAVED)
def saved(request, tmp_path_factory):
    name, pairs = SAVED[request.param]
    pack = pack_of(name, *pairs)
    folder = tmp_path_factory.mktemp("packs") / name
    pack.save(folder)
    return pack, HostPack.load(folder), folder


def test_what_is_loaded_is_what_was_saved(saved):
    before, after, _ = saved
    assert after.host.id == before.host.id
    assert after.host.potential_sha256 == before.host.potential_sha256
    assert set(after.substitutions) == set(before.substitutions)
    assert after.dopants == before.dopants
    for key, one in before.substitutions.items():
        other = after.substitutions[key]
        assert (other.dopant, other.site, other.orientations) == (one.dopant, one.site, one.orientations)
        assert other.off_centre == one.off_centre
        assert other.volume == pytest.approx(one.volume, abs=1e-5)
        assert other.far_volume == pytest.approx(one.far_volume, abs=1e-5)
        assert sorted(r.tobytes() for r in other.rotations) == sorted(r.tobytes() for r in one.rotations)
    assert after.host.band_edge_mev == pytest.approx(before.host.band_edge_mev, abs=0.02)


def test_a_loaded_pack_has_the_same_phonons(saved):
    before, after, _ = saved
    (dopant, site), _ = next(iter(before.substitutions.items()))
    packs = [Superposition(pack.host, pack.substitutions, CELL, Q) for pack in (before, after)]
    occupation = Occupation((site * packs[0].cell.repeats,), (dopant,))
    pristine = [one.hessians(Occupation((), ())) for one in packs]
    doped = [one.hessians(occupation) for one in packs]
    change = doped[0] - pristine[0]
    assert largest((doped[1] - pristine[1]) - change) < 0.01 * largest(change)
    one, other = (np.sort(pack.modes(occupation).energy_mev) for pack in packs)
    hard = one > 1.0  # the root magnifies what is near zero
    assert largest((one - other)[hard]) < 0.1
    assert largest(one - np.sort(packs[0].host_modes().energy_mev)) > 0.5


def test_saving_a_loaded_pack_keeps_it(saved, tmp_path):
    """To the byte, where operations only swap axes; rotations by 60 degrees round once more, in the last digit."""
    _, after, folder = saved
    after.save(tmp_path / "once")
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "once"))
    hexagonal = "wurtzite" in after.host.id
    for name, tensor in one.items():
        if hexagonal and name.endswith("blocks"):
            assert (other[name].double() - tensor.double()).abs().max() < 1e-3 * tensor.double().abs().max()
        else:
            assert torch.equal(other[name], tensor), name


def test_symmetric_reduction_loses_nothing_of_symmetric_blocks(saved):
    """A loaded pack is symmetric to rounding: reduced and expanded it is what it was."""
    _, pack, _ = saved
    host = pack.host
    cases = [(*_host_pairs((host.force_constants, *host.by_volume)), host.operations, None)]
    for (_, site), one in pack.substitutions.items():
        cases.append((*_local_pairs(one), fixing(host.operations, site, one.rotations), site))
    for pairs, blocks, group, site in cases:
        kept, means = reduced(pairs, blocks, group, site)
        assert len(kept) < 0.8 * len(pairs)
        back, values = expanded(pairs[kept], means, group, site)
        place = {tuple(pair): k for k, pair in enumerate(back.tolist())}
        assert set(place) == {tuple(pair) for pair in pairs.tolist()}
        order = [place[tuple(pair)] for pair in pairs.tolist()]
        assert largest(values[:, order] - blocks) < 1e-9


def test_symmetric_reduction_of_random_blocks_is_their_mean():
    """It is a projection: once symmetric, always the same; and the mean over the group beforehand."""
    host = model("GaAs")
    group = host.operations
    rng = np.random.default_rng(0)
    seed = np.array([[0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, -1]])
    pairs, values = expanded(seed, rng.normal(size=(2, 2, 3, 3)), group, None)
    assert len(pairs) == 2 * 4 + 12  # bonds both ways, and from gallium to the twelve next
    noisy = values + 0.1 * rng.normal(size=values.shape)
    kept, means = reduced(pairs, noisy, group, None)
    back, again = expanded(pairs[kept], means, group, None)
    np.testing.assert_array_equal(back, pairs)
    once, twice = reduced(pairs, again, group, None)
    np.testing.assert_array_equal(once, kept)
    assert largest(twice - means) < 1e-12
    assert largest(again - values) < 0.15


def test_a_pack_with_ten_substitutions_is_small(tmp_path):
    """Of 54 atoms: 0.3 MB before symmetry and half precision would be 8 MB."""
    pairs = [(x, "Ga") for x in ("Al", "In", "Zn", "Si", "Be")] + [(x, "As") for x in ("N", "P", "Sb", "S", "Se")]
    host = model("GaAs", 54)
    made = {(x, site_of(host, z)): single("GaAs", x, z, 54) for x, z in pairs}
    HostPack(host, made).save(tmp_path / "GaAs")
    size = sum(path.stat().st_size for path in (tmp_path / "GaAs").iterdir())
    assert size < 300_000, size
    whole = sum(one.change.nbytes + one.by_volume.nbytes for one in made.values())
    assert size < whole / 20


def test_the_card_and_the_config_say_what_is_in_it(saved):
    pack, _, folder = saved
    card = (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert "CC BY 4.0" in card
    assert all(dopant in card for dopant in pack.dopants)
    assert config["architecture"] == "host"
    assert config["potential"] == "defectnet-nep"
    assert [(row["dopant"], row["site"]) for row in config["substitutions"]] == list(
        HostPack.load(folder).substitutions
    )


def test_bundled_packs_are_found_by_name(saved, monkeypatch, tmp_path):
    pack, _, folder = saved
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts" / "Some-Host").symlink_to(folder)
    monkeypatch.setattr("defectnet.crystal.pack.bundled_root", lambda: tmp_path)
    assert list(bundled_packs()) == ["Some-Host"]
    assert find_pack("some-host") == tmp_path / "hosts" / "Some-Host"
    assert HostPack.load("SOME-HOST").host.id == pack.host.id


# -- making ------------------------------------------------------------------------------------------------------------

PAIRS = [("In", "Ga"), ("N", "As"), ("Al", "Ga")]


def job(folder: Path, pairs=PAIRS, name: str = "GaAs"):
    return host_of(name), pairs, folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A pack made in one go."""
    folder = tmp_path_factory.mktemp("undisturbed") / "GaAs"
    seen: list[Progress] = []
    assert make_packs([job(folder)], SETTINGS, report=seen.append) == {}
    return folder, seen


def test_a_pack_is_made(undisturbed):
    folder, seen = undisturbed
    pack = HostPack.load(folder)
    assert set(pack.substitutions) == {("In", 0), ("N", 1), ("Al", 0)}
    assert not pack.failures
    assert [(p.host, p.done, p.total) for p in seen] == [("GaAs", k, 3) for k in (1, 2, 3)]
    assert [p.last for p in seen] == ["In@Ga", "N@As", "Al@Ga"]
    assert [path.name for path in folder.parent.iterdir()] == ["GaAs"]  # no parts are left


def test_making_it_again_does_nothing(undisturbed, monkeypatch):
    folder, _ = undisturbed
    before, written = contents(folder), folder.stat().st_ino

    def never(*_, **__):
        raise AssertionError("nothing is to be made")

    monkeypatch.setattr(make, "substitute", never)
    monkeypatch.setattr(make, "make_host", never)
    assert make_packs([job(folder)], SETTINGS) == {}
    assert contents(folder) == before
    assert folder.stat().st_ino == written


class Interruption(BaseException):
    """As a keyboard interrupt is."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_it_goes_on(after, undisturbed, tmp_path, monkeypatch):
    plain, calls = make.substitute, []

    def interrupted(*arguments, **options):
        if len(calls) == after:
            raise Interruption
        calls.append(arguments[3])
        return plain(*arguments, **options)

    monkeypatch.setattr(make, "substitute", interrupted)
    with pytest.raises(Interruption):
        make_packs([job(tmp_path / "GaAs")], SETTINGS)
    assert not (tmp_path / "GaAs").exists()
    made = []
    monkeypatch.setattr(make, "substitute", lambda *a, **o: made.append(a[3]) or plain(*a, **o))
    assert make_packs([job(tmp_path / "GaAs")], SETTINGS) == {}
    assert made == [x for x, _ in PAIRS][after:]
    assert contents(tmp_path / "GaAs") == contents(undisturbed[0])


def test_interrupted_while_tidying_up_it_is_the_same(undisturbed, tmp_path, monkeypatch):
    """The pack is there and its parts too: as when the process ends between the two."""

    plain = shutil.rmtree

    def interrupted(path, **options):
        if Path(path).name.endswith(".parts"):
            raise Interruption
        plain(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("defectnet.crystal.make.shutil.rmtree", interrupted)
        patch.setattr(make, "substitute", failing("N", make.substitute))
        with pytest.raises(Interruption):
            make_packs([job(tmp_path / "GaAs")], SETTINGS)
    assert len(HostPack.load(tmp_path / "GaAs").failures) == 1
    before = contents(tmp_path / "GaAs")
    assert make_packs([job(tmp_path / "GaAs")], SETTINGS) == {}
    assert contents(tmp_path / "GaAs") == before
    assert len(HostPack.load(tmp_path / "GaAs").failures) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["GaAs"]


def made_in_steps(folder: Path, steps: Connection) -> None:
    """Make a pack; each substitution, once computed, is told, and kept when an answer comes."""
    plain = make.substitute

    def slow(*arguments, **options):
        found = plain(*arguments, **options)
        steps.send(arguments[3])
        steps.recv()
        return found

    make.substitute = slow
    make_packs([job(folder)], SETTINGS)


def test_killed_it_goes_on(undisturbed, tmp_path):
    context = forking(make.__name__)
    steps, theirs = context.Pipe()
    process = context.Process(target=made_in_steps, args=(tmp_path / "GaAs", theirs))
    process.start()
    try:
        assert steps.recv() == "In"
        steps.send("go on")
        assert steps.recv() == "N"  # computed, and not yet kept
        parts = tmp_path / ".GaAs.parts"
        assert (parts / "In-0").is_dir()
    finally:
        process.kill()
        process.join()
    (parts / ".N-1.new").mkdir(exist_ok=True)  # as if it had been killed while writing
    (parts / ".N-1.new" / "model.safetensors").write_bytes(b"half")
    kept = (parts / "In-0" / "model.safetensors").stat().st_mtime_ns
    seen: list[Progress] = []
    assert not (tmp_path / "GaAs").exists()
    assert make_packs([job(tmp_path / "GaAs")], SETTINGS, report=seen.append) == {}
    assert [p.last for p in seen] == ["N@As", "Al@Ga"]
    assert kept < time.time_ns()
    assert contents(tmp_path / "GaAs") == contents(undisturbed[0])
    assert [path.name for path in tmp_path.iterdir()] == ["GaAs"]


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(undisturbed, tmp_path):
    seen: list[Progress] = []
    jobs = [job(tmp_path / "GaAs"), job(tmp_path / "MgO", [("Ca", "Mg")], "MgO")]
    assert make_packs(jobs, SETTINGS, workers=2, report=seen.append) == {}
    assert sorted(p.last for p in seen) == ["Al@Ga", "Ca@Mg", "In@Ga", "N@As"]
    assert contents(tmp_path / "GaAs") == contents(undisturbed[0])
    assert make_packs([job(tmp_path / "one" / "MgO", [("Ca", "Mg")], "MgO")], SETTINGS) == {}
    assert contents(tmp_path / "MgO") == contents(tmp_path / "one" / "MgO")


def failing(dopant: str, plain):
    """`substitute` that fails for one dopant."""

    def substitute(potential, host, site, name, **options):
        if name == dopant:
            raise SimulationError(f"{name} on site {site} of {host.id} does not come to rest", fix="Leave it out")
        return plain(potential, host, site, name, **options)

    return substitute


def test_failed_substitutions_are_listed_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "substitute", failing("N", make.substitute))
    seen: list[Progress] = []
    assert make_packs([job(tmp_path / "GaAs")], SETTINGS, report=seen.append) == {}
    pack = HostPack.load(tmp_path / "GaAs")
    assert set(pack.substitutions) == {("In", 0), ("Al", 0)}
    (failure,) = pack.failures
    assert (failure.dopant, failure.site) == ("N", 1)
    assert failure.reason == "N on site 1 of GaAs does not come to rest"
    assert "N@As (N on site 1 of GaAs does not come to rest)" in (tmp_path / "GaAs" / "README.md").read_text()
    assert seen[-1].done == seen[-1].total == 3


def test_a_substitution_that_the_potential_does_not_hold_is_a_failure(tmp_path):
    settings = MakeSettings(potential="defectnet-nep", atoms=16, starts=0)
    assert make_packs([job(tmp_path / "MgO", [("Be", "Mg"), ("Zn", "Mg")], "MgO")], settings) == {}
    pack = HostPack.load(tmp_path / "MgO")
    assert set(pack.substitutions) == {("Zn", 0)}
    assert "has no stable place" in pack.failures[0].reason


def test_any_error_of_the_numbers_is_a_failure(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise np.linalg.LinAlgError("did not converge\nat all")

    monkeypatch.setattr(make, "substitute", broken)
    assert make_packs([job(tmp_path / "GaAs", PAIRS[:1])], SETTINGS) == {}
    (failure,) = HostPack.load(tmp_path / "GaAs").failures
    assert failure.reason.startswith("LinAlgError: did not converge")
    assert "\n" not in failure.reason


def test_dopants_are_added_to_a_pack(undisturbed, tmp_path, monkeypatch):
    assert make_packs([job(tmp_path / "GaAs", PAIRS[:1])], SETTINGS) == {}
    made, plain = [], make.substitute
    monkeypatch.setattr(make, "substitute", lambda *a, **o: made.append(a[3]) or plain(*a, **o))
    assert make_packs([job(tmp_path / "GaAs", PAIRS[1:])], SETTINGS) == {}
    assert made == ["N", "Al"]
    assert contents(tmp_path / "GaAs") == contents(undisturbed[0])


def test_a_host_that_fails_leaves_the_others(tmp_path, undisturbed):
    broken = host_of("SiO2-quartz"), [("Ge", "Si")], tmp_path / "quartz"
    failed = make_packs([broken, job(tmp_path / "GaAs")], SETTINGS)
    assert list(failed) == ["SiO2-quartz"]
    assert "finds it unstable" in failed["SiO2-quartz"]
    assert not (tmp_path / "quartz").exists()
    assert contents(tmp_path / "GaAs") == contents(undisturbed[0])


def test_dopants_are_chosen_by_name():
    gallium = host_of("GaAs")
    assert choose_dopants(gallium, ["Al@Ga", "In"]) == [("Al", "Ga"), ("In", "Ga"), ("In", "As")]
    assert choose_dopants(gallium, ["Al@Ga", "Al@Ga"]) == [("Al", "Ga")]
    every = choose_dopants(gallium, ["all"])
    assert len(every) == 2 * 60
    likely = choose_dopants(gallium, ["plausible"])
    assert len(likely) == make.PLAUSIBLE
    assert set(likely) < set(every)


def test_a_pack_holds_no_path_of_the_machine(undisturbed):
    folder, _ = undisturbed
    for name in ("config.json", "README.md"):
        assert str(folder.parent) not in (folder / name).read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["made_with"]["atoms"] == 16
    assert set(config["made_with"]) >= {"structure_sha256", "potential_sha256", "keep", "starts", "volume_step"}


def test_numbers_of_a_pack_are_of_the_precision_that_is_promised(undisturbed):
    tensors = load_file(undisturbed[0] / "model.safetensors")
    assert tensors["blocks"].dtype == torch.float16
    assert tensors["host_blocks"].dtype == torch.float32
    assert tensors["cell"].dtype == torch.float64
