"""A network's second opinion of a known crystal, and how it is pooled with the inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from defectnet.hub import from_pretrained
from defectnet.inference import known_crystal
from defectnet.inference.answer_text import about
from defectnet.inference.comparison import Standard
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.inference.posterior import Opinion, infer
from defectnet.pipeline import Asker, Question
from packs import bundled

CANDIDATES = ["Al", "In", "Zn"]


@pytest.fixture(scope="module", autouse=True)
def _few_cells():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_crystal, "CELLS", (10, 20))
        patch.setattr(known_crystal, "NEAR_CELLS", 10)
        patch.setattr(known_crystal, "ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def crystal():
    return KnownCrystal(bundled("GaAs"), CANDIDATES)


@pytest.fixture(scope="module")
def pair():
    found = bundled("GaAs").spectrum({"In": 0.04}, cells=4, atoms=100, fwhm_mev=3.0, seed=3)
    return found.host_spectrum(), found.doped_spectrum()


@pytest.fixture(scope="module")
def likelihood(crystal, pair):
    seen = crystal.compare(*pair, None, None, False)
    return crystal.likelihood_near(seen, (), False, np.inf)


def test_an_opinion_is_the_probability_of_what_is_said_of_all():
    opinion = Opinion(("Al", "In"), np.array([0.2, 0.7]))
    assert sum(np.exp(opinion.log(one)) for one in ([], ["Al"], ["In"], ["Al", "In"])) == pytest.approx(1.0)
    assert np.exp(opinion.log(["In"])) == pytest.approx(0.8 * 0.7)
    assert np.isfinite(Opinion(("Al",), np.zeros(1)).log(["Al"]))


def test_pooled_probabilities_are_the_geometric_mean_of_both(likelihood):
    """Of two hypotheses that differ in one element alone, half the log odds of either."""
    alone = infer(likelihood)

    def odds(found, more):
        share = {(frozenset(x.partition("@")[0] for x in one.dopants), one.other): 0.0 for one in found.likeliest}
        for one in found.likeliest:
            share[frozenset(x.partition("@")[0] for x in one.dopants), one.other] += one.probability
        return np.log(share[frozenset({"In", more}), False] / share[frozenset({"In"}), False])

    opinion = Opinion(alone.elements, np.array([0.4, 0.95, 0.1]))
    assert alone.elements == ("Al", "In", "Zn")
    both = infer(likelihood, opinion=opinion)
    wanted = 0.5 * odds(alone, "Al") + 0.5 * np.log(0.4 / 0.6)
    assert odds(both, "Al") == pytest.approx(wanted, abs=1e-6)


def test_an_opinion_moves_every_probability_its_way(likelihood):
    alone = infer(likelihood)
    for symbol in alone.elements:
        i = alone.elements.index(symbol)
        for said in (0.01, 0.99):
            p = np.full(len(alone.elements), 0.3)
            p[i] = said
            moved = infer(likelihood, opinion=Opinion(alone.elements, p))
            assert (moved.probability[i] > alone.probability[i]) == (said > alone.probability[i])
            assert moved.other == pytest.approx(alone.other)  # of something else the inference alone speaks


def test_measured_samples_get_a_second_opinion(crystal, pair):
    """It is what the network says by itself, from the same responses."""
    said = {}
    opinion, told = crystal.second_opinion(*pair, crystal.pack.host.band_edge_mev)
    assert told == "inference and defectnet-quick"
    network = from_pretrained("defectnet-quick")
    own = network.predict(
        *pair,
        "GaAs",
        candidates=CANDIDATES,
        edge=crystal.pack.host.band_edge_mev,
        responses=crystal._responses,
    )
    np.testing.assert_array_equal(opinion.probability, own.probability)
    for one in (crystal, KnownCrystal(crystal.pack, CANDIDATES, network=None)):
        answer = one.identify(*pair)
        said[answer.pooled] = answer.posterior.probability
        assert answer.pooled in about(answer)
        assert answer.to_dict()["pooled"] == answer.pooled
    both, alone = said["inference and defectnet-quick"], said["inference alone"]
    assert not np.allclose(both, alone)


def test_where_a_network_knows_nothing_the_inference_is_alone(crystal, pair):
    assert crystal.identify(*pair, same_potential=True).pooled == "inference alone"
    standard = Standard(*pair, {"In": 0.04})
    assert crystal.identify(*pair, standards=[standard]).pooled == "inference alone"
    projected = [replace(one, kind="projected", element="Ga") for one in pair]
    answer = crystal.identify(*projected)
    assert answer.pooled.startswith("inference alone, for defectnet-quick cannot answer (")
    assert "projected" in answer.pooled


def test_the_network_that_is_named_is_asked(pair):
    """One that reads no computed responses cannot help, and the answer says so."""
    asker = Asker(checkpoint="defectnet-small")
    answer = asker.ask(Question(*pair, pack="GaAs", candidates=CANDIDATES))
    assert "defectnet-small" in answer.pooled
    assert "computed responses" in answer.pooled
