"""Computed responses: what packs say of a dopant, and networks that read it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import nnls

from conftest import TINY_NETS
from defectnet import hub, pipeline
from defectnet.batch import Batch, Computed
from defectnet.cli import main
from defectnet.config import MODEL_GRID, STORAGE_GRID
from defectnet.crystal.responses import LEVELS, load_responses, read_responses, save_responses
from defectnet.data.candidates import TrackSettings
from defectnet.data.computed import Disturbance, ResponseTable
from defectnet.data.dataset import View
from defectnet.data.shards import in_brief, read_shard, shard_files
from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError, ShardError, SpectrumError
from defectnet.inference.responses import likeliest_sites, on_model_grid
from defectnet.io.write import write_spectrum
from defectnet.models.registry import build_model
from defectnet.nn.computed import BINS
from defectnet.nn.fits import non_negative_fits
from defectnet.spectrum import Spectrum
from defectnet.tasks.defect import able_to
from make_shards import toy_folder
from packs import gallium_arsenide, gallium_arsenide_responses


@pytest.fixture(scope="module")
def responses():
    return gallium_arsenide_responses()


def test_a_response_is_the_change_of_a_doped_spectrum(responses):
    made = gallium_arsenide().spectrum("P=0.03", cells=8, atoms=128, seed=3)
    for kind in ("total", "neutron-weighted"):
        host, change = responses.weighted(kind)
        pair = [on_model_grid(one.dos / one.dos.sum()) for one in (made.host_spectrum(kind), made.doped_spectrum(kind))]
        expected = (pair[1] - pair[0]) / (STORAGE_GRID.width * made.concentrations["P"])
        seen, found = (gaussian_filter1d(x, 6.0) for x in (expected, change[responses.dopants.index("P@As"), 0]))
        assert np.corrcoef(seen, found)[0, 1] > 0.98
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(seen), rel=0.1)
        assert host.sum() * MODEL_GRID.width == pytest.approx(1.0)
        assert np.abs(change.sum(-1)).max() < 1e-9


def test_a_dopant_stands_on_its_likeliest_site(responses):
    assert set(gallium_arsenide().dopants) == {"Al@Ga", "Al@As", "P@As"}
    assert likeliest_sites(gallium_arsenide(), gallium_arsenide().dopants) == ("Al@Ga", "P@As")
    assert responses.dopants == ("Al@Ga", "P@As")
    assert responses.concentration[:, 0] == pytest.approx(LEVELS[0], rel=0.25)


def test_they_are_kept(responses, tmp_path):
    save_responses(tmp_path / "GaAs.safetensors", responses)
    again = read_responses(tmp_path)["GaAs"]
    for name in ("id", "formula", "potential", "potential_sha256", "edge_mev", "host_elements", "dopants"):
        assert getattr(again, name) == getattr(responses, name), name
    np.testing.assert_allclose(again.change, responses.change, rtol=2e-3, atol=1e-3 * np.abs(responses.change).max())


def _spoilt(path, name):
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        entries = json.loads(file.metadata()["defectnet"])
    if name == "schema":
        entries["schema_version"] = 2
    elif name == "element":
        entries["dopants"][0] = "Xx@Ga"
    elif name == "field":
        del entries["edge_mev"]
    elif name == "NaN":
        arrays["change"][0] = np.nan
    elif name == "shape":
        arrays["host"] = arrays["host"][:, :-1].copy()
    elif name == "zero":
        arrays["concentration"][0] = 0.0
    save_file(arrays, path, {"defectnet": json.dumps(entries)})


@pytest.mark.parametrize("name", ["schema", "element", "field", "NaN", "shape", "zero", "truncated", "empty folder"])
def test_what_is_damaged_is_refused(responses, tmp_path, name):
    path = tmp_path / "GaAs.safetensors"
    if name == "empty folder":
        with pytest.raises(ShardError, match="holds no computed responses"):
            read_responses(tmp_path)
        return
    save_responses(path, responses)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        _spoilt(path, name)
    with pytest.raises(ShardError, match=r"GaAs\.safetensors.*host responses"):
        load_responses(path)


# training data


@pytest.fixture(scope="module")
def view_of(responses, tmp_path_factory):
    """Rows of toys, and what makes them input: each host has responses of three of four elements."""
    folder = toy_folder(tmp_path_factory.mktemp("toys"), train=240)
    rows = in_brief([sample for path in shard_files(folder) for sample in read_shard(path)])
    symbols = [symbol for i, symbol in enumerate(VOCABULARY) if i % 4]
    shape = (len(symbols), len(LEVELS))
    change = np.random.default_rng(0).normal(size=(*shape, 3, MODEL_GRID.bins))
    one = replace(
        responses, dopants=tuple(f"{x}@Ga" for x in symbols), concentration=np.full(shape, 0.03), change=change
    )
    table = {row.row_id.rpartition("/")[0]: (one,) for row in rows}
    settings = TrackSettings(blind_share=0.2, max_distractors=6, open_share=0.3)
    return rows, lambda **how: View(
        track="mixed", tracks=settings, seed=3, responses=ResponseTable(table, Disturbance(**how))
    )


def test_responses_do_not_tell_what_is_there(view_of):
    """Elements with and without a response are there equally often, and those in question have one."""
    rows, view = view_of
    item = view(shown=0.9, forgotten=0.25).collate(rows, range(len(rows)), 0)
    computed, asked = item.batch.computed, item.batch.candidates & item.batch.candidates_given[:, None]
    shown = computed.known.any(1)
    assert 40 < shown.sum() < len(rows)
    assert not computed.known[~item.batch.candidates_given].any()
    readable = torch.tensor([i % 4 > 0 for i in range(len(VOCABULARY))])
    assert not (asked[shown] & ~readable).any()
    for there in (True, False):
        chosen = asked[shown] & (item.targets.present[shown] == there)
        assert (chosen & ~computed.known[shown]).sum() / chosen.sum() == pytest.approx(0.25, abs=0.09)


def test_a_row_is_shown_the_same_in_every_batch(view_of):
    rows, view = view_of
    view = view()
    together = view.collate(rows[:16], range(16), 1).batch
    for i in range(16):
        alone = view.collate(rows[i : i + 1], [i], 1).batch
        assert torch.equal(alone.candidates[0], together.candidates[i])
        if alone.computed is None:
            assert not together.computed.known[i].any()
        else:
            assert all(torch.equal(a[0], b[i]) for a, b in zip(alone.computed, together.computed, strict=True))


def test_a_disturbed_response_has_no_area_and_is_like_the_first(responses):
    host, change = responses.weighted("total")
    quiet = Disturbance(disturbed=1.0, energy=0.0, common=0.0, own=0.0, shares=(0.0,), chances=(1.0,))
    same = quiet(host, change, np.random.default_rng(0))
    np.testing.assert_allclose(same[1], change, atol=1e-9 * np.abs(change).max())
    loud = Disturbance(disturbed=1.0, energy=0.0, common=0.0, own=0.0, shares=(0.5,), chances=(1.0,), spread=0.0)
    wrong = []
    for seed in range(40):
        _, found = loud(host, change, np.random.default_rng(seed))
        assert np.abs(found.sum(-1)).max() < 1e-6 * np.abs(found).max() * MODEL_GRID.bins
        wrong.append(((found - change)[:, 0] ** 2).sum(1) / (change[:, 0] ** 2).sum(1))
    assert np.mean(wrong) == pytest.approx(0.5, rel=0.15)


def test_impossible_disturbances_are_refused():
    for wrong in ({"shares": (0.1,)}, {"chances": (0.0,) * 5}, {"own": -1.0}, {"shown": 1.5}):
        with pytest.raises(ConfigError, match=r"data\.responses"):
            Disturbance(**wrong)


# the fits


def test_fits_are_those_of_non_negative_least_squares():
    rng = np.random.default_rng(0)
    response, seen = rng.normal(size=(6, 9, 64)), rng.normal(size=(6, 64))
    response[:, 7:] = 0.0  # not in question
    seen[:3] += 0.3 * response[:3, 0] + 0.1 * response[:3, 4]
    found = non_negative_fits(*(torch.from_numpy(x) for x in (response, seen))).numpy()
    for r, d, said in zip(response, seen, found, strict=True):
        amount, rest = nnls(r[:7].T, d)
        np.testing.assert_allclose(said[:7, 0] / 8.0, np.minimum(amount, 1.0), atol=1e-6)
        np.testing.assert_allclose(said[:, 3], 0.5 * np.log(rest**2 / (d @ d) + 1e-3) + 1.0, atol=1e-6)
        for k in range(7):
            _, worse = nnls(np.delete(r[:7], k, axis=0).T, d)
            floor = 1e-3 * (d @ d)
            assert said[k, 2] == pytest.approx(np.log((worse**2 + floor) / (rest**2 + floor)), abs=1e-4)
    assert np.abs(found[:, 7:, :3]).max() < 1e-6


# the network


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    plain = build_model("DefectNet", net=TINY_NETS["DefectNet"]).eval()
    able = able_to(plain, ["computed_responses"]).eval()
    torch.manual_seed(1)
    taught = able_to(plain, ["computed_responses"]).eval()
    for parameter in taught.computed.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return plain, able, taught


def _known(batch: Batch, seed: int = 0) -> Batch:
    """Half of the rows, and two of three elements of these, with made-up responses."""
    generator = torch.Generator().manual_seed(seed)
    rows, elements = batch.candidates.shape
    known = torch.rand(rows, elements, generator=generator) < 0.67
    known[::2] = False
    bins = batch.host.shape[1]
    host = torch.rand(rows, bins, generator=generator) * known.any(1)[:, None]
    response = torch.randn(rows, elements, len(LEVELS), bins, generator=generator) * known[:, :, None, None]
    level = 0.05 * known[:, :, None].expand(-1, -1, len(LEVELS)).float()
    return batch._replace(computed=Computed(host, response, level, known))


def test_a_new_part_changes_nothing_before_it_is_trained(networks, random_batch):
    plain, able, _ = networks
    batch = random_batch(8)
    for asked in (batch, _known(batch)):
        torch.testing.assert_close(able(asked).identity_logits, plain(batch).identity_logits)


def test_rows_without_responses_are_answered_as_ever(networks, random_batch):
    plain, _, taught = networks
    batch = random_batch(8)
    found, expected = taught.predict_batch(_known(batch)), plain.predict_batch(batch)
    torch.testing.assert_close(found.identity_logits[::2], expected.identity_logits[::2])
    assert not torch.allclose(found.identity_logits[1::2], expected.identity_logits[1::2])


def test_an_answer_does_not_depend_on_its_batch(networks, random_batch):
    batch = _known(random_batch(8))
    alone = [networks[2].predict_batch(batch.rows(slice(i, i + 1))) for i in range(8)]
    together = networks[2].predict_batch(batch)
    joined = networks[2].predict_batch(Batch.join([batch.rows(slice(0, 3)), batch.rows(slice(3, 8))]))
    for i, one in enumerate(alone):
        assert torch.equal(one.identity_logits[0], together.identity_logits[i])
    assert torch.equal(joined.identity_logits, together.identity_logits)


def test_a_response_on_another_scale_of_energies_is_brought_into_line(networks):
    """A host that was computed 6 % too soft, and its responses with it, give the fits of the right one."""
    computed = networks[2].computed
    centres = MODEL_GRID.centres
    host = np.exp(-0.5 * ((centres - 0.4) / 0.08) ** 2) + 1.5 * np.exp(-0.5 * ((centres - 0.85) / 0.05) ** 2)
    host /= host.sum() * MODEL_GRID.width
    soft = np.interp(centres * 1.06, centres, host)
    soft /= soft.sum() * MODEL_GRID.width
    pooled = torch.from_numpy(host.reshape(BINS, -1).mean(1)).float()[None]
    pair = [computed.align(pooled, torch.from_numpy(x).float()[None]) for x in (host, soft)]
    brought = [(op[0] @ torch.from_numpy(x).float()) for (op, _), x in zip(pair, (host, soft), strict=True)]
    raw = (torch.from_numpy(soft.reshape(BINS, -1).mean(1)).float() - pooled[0]).norm()
    assert (brought[1] - pooled[0]).norm() < 0.12 * raw
    assert (brought[0] - pooled[0]).norm() < 0.02 * pooled.norm()


def test_a_question_with_responses(networks, responses, random_batch):
    """It says so, asks by default about what the pack holds, and other hosts and other networks are refused."""
    energy = np.linspace(0.0, 40.0, 400)
    host = np.exp(-0.5 * ((energy - 20.0) / 6.0) ** 2)
    doped = host + 0.1 * np.exp(-0.5 * ((energy - 30.0) / 1.0) ** 2)
    pair = Spectrum(energy, host, "meV"), Spectrum(energy, doped, "meV")
    plain, _, taught = networks
    told = taught.predict(*pair, "GaAs", responses=responses)
    assert set(told.elements) == {"Al", "P"}
    assert told.answered_by == "network with computed responses"
    assert "GaAs, computed with defectnet-nep" in str(told)
    named = taught.predict(*pair, "GaAs", candidates=["P", "Sb"], responses=responses)
    alone = taught.predict(*pair, "GaAs", candidates=["P", "Sb"])
    assert alone.answered_by == "network"
    assert not np.allclose(named.probability, alone.probability)
    many = taught.predict_many([(*pair, "GaAs", ["P", "Sb"], None, responses), (*pair, "GaAs", ["P", "Sb"])])
    np.testing.assert_allclose(many[0].probability, named.probability)
    np.testing.assert_allclose(many[1].probability, alone.probability)
    with pytest.raises(ConfigError, match="are of GaAs, the host is GaN"):
        taught.predict(*pair, "GaN", responses=responses)
    with pytest.raises(ConfigError, match="reads no computed responses"):
        plain.predict(*pair, "GaAs", responses=responses)
    seen = [replace(one, kind="projected", element="As") for one in pair]
    with pytest.raises(SpectrumError, match="projected"):
        taught.predict(*seen, "GaAs", responses=responses)


# the command


def test_responses_of_a_folder_of_packs(tmp_path):
    """They are made by several processes, and what is there is kept."""
    pack = gallium_arsenide()
    one = {key: value for key, value in pack.substitutions.items() if key[0] == "P"}
    for name in ("GaAs", "other"):
        replace(pack, host=replace(pack.host, id=name), substitutions=one).save(tmp_path / "packs" / name)
    command = ["host", "responses", str(tmp_path / "packs"), "--out", str(tmp_path / "responses")]
    main([*command, "--workers", "2"])
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "responses").iterdir()}
    assert sorted(read_responses(tmp_path / "responses")) == ["GaAs", "other"]
    main(command)
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "responses").iterdir()}


def test_quick_answers(networks, responses, tmp_path, capsys, monkeypatch):
    """`identify --quick` and tables answer as `predict` with the responses of the pack; other questions are refused."""
    pack, (_, _, taught) = gallium_arsenide(), networks
    pack.save(tmp_path / "pack")
    made = pack.spectrum("P=0.04", cells=2, atoms=32)
    files = [str(tmp_path / name) for name in ("host.csv", "doped.csv")]
    for path, one in zip(files, (made.host_spectrum(), made.doped_spectrum()), strict=True):
        write_spectrum(path, one)
    monkeypatch.setattr(hub, "from_pretrained", lambda *_, **__: taught)
    monkeypatch.setattr(pipeline, "from_pretrained", lambda *_, **__: taught)
    ask = ["identify", "--host", files[0], "--doped", files[1], "--pack", str(tmp_path / "pack"), "--quick"]
    main([*ask, "--candidates", "Al@Ga,P", "--json"])
    told = json.loads(capsys.readouterr().out)
    expected = taught.predict(*files, "GaAs", candidates=["Al", "P"], responses=responses)
    assert told["answered_by"] == "network with computed responses"
    assert {one["element"]: one["probability"] for one in told["elements"]} == pytest.approx(
        dict(zip(expected.elements, expected.probability.tolist(), strict=True)), abs=1e-4
    )
    found = pipeline.identify(*files, pack=pack, candidates=["Al@Ga", "P"], quick=True)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-9)
    for wrong, what in (
        ([*ask[:5], "--formula", "GaAs", "--quick"], "known crystal"),
        ([*ask, "--same-potential"], "takes no"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert what in capsys.readouterr().err
