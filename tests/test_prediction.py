"""The answer: sorted tables, plain values, and a text that a person reads."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from defectnet.errors import ConfigError
from defectnet.prediction import Prediction

NAN = np.full(3, np.nan)
ARRAYS = ("probability", "concentration_if_present", "low", "high", "expected_concentration")


def prediction(**change: Any) -> Prediction:
    fields: dict[str, Any] = {
        "elements": ("B", "Al", "In"),
        "probability": np.array([0.2, 0.9, 0.6]),
        "concentration_if_present": np.array([0.01, 0.125, 0.03]),
        "low": np.array([0.0, 0.1, 0.02]),
        "high": np.array([0.02, 0.15, 0.04]),
        "expected_concentration": np.array([0.002, 0.1125, 0.018]),
        "coverage": 0.9,
        "threshold": 0.5,
        "candidates_given": True,
        "formula": "GaAs",
        "model": "tiny-v1",
        "warnings": ("out of domain: a reason",),
    }
    return Prediction(**(fields | change))


def test_present_is_sorted_by_probability():
    assert prediction().present == ("Al", "In")
    assert prediction(threshold=0.6).present == ("Al", "In")  # the threshold itself counts
    assert prediction(threshold=0.95).present == ()


def test_frame():
    frame = prediction().to_frame()
    assert list(frame.columns) == [
        "element",
        "probability",
        "concentration_if_present",
        "low",
        "high",
        "expected_concentration",
        "present",
    ]
    assert frame.element.tolist() == ["Al", "In", "B"]
    assert frame.present.tolist() == [True, True, False]
    assert frame.concentration_if_present.tolist() == [0.125, 0.03, 0.01]


def test_ties_stay_in_order_of_atomic_number():
    assert prediction(probability=np.full(3, 0.7)).present == ("B", "Al", "In")


def test_dict_is_json():
    values = json.loads(json.dumps(prediction().to_dict(), allow_nan=False))
    assert values["present"] == ["Al", "In"]
    assert values["elements"][0] == {
        "element": "Al",
        "probability": 0.9,
        "concentration_if_present": 0.125,
        "low": 0.1,
        "high": 0.15,
        "expected_concentration": 0.1125,
        "present": True,
    }
    unknown = json.loads(json.dumps(prediction(low=NAN, high=NAN, coverage=float("nan")).to_dict(), allow_nan=False))
    assert unknown["coverage"] is None
    assert unknown["elements"][0]["low"] is None


def test_text():
    lines = str(prediction()).splitlines()
    assert lines[0] == prediction().sentence
    assert lines[1] == "tiny-v1, candidates given, threshold 0.50"
    assert lines[2] == "answered by the network"
    assert "90% interval" in lines[4]
    assert lines[5].split() == ["Al", "0.900", "12.50", "10.0", "to", "15.0", "yes"]
    assert lines[7].split()[-1] == "no"
    assert lines[8] == "at.% count all atoms; per formula unit GaAs: Al 0.25 (0.2 to 0.3), In 0.06 (0.04 to 0.08)"
    assert lines[9] == "warning: out of domain: a reason"
    assert repr(prediction()) == str(prediction())
    measured = str(prediction(answered_by="measured responses", reason="no pair held B"))
    assert measured.splitlines()[2] == "answered by measured responses: no pair held B"
    assert "not calibrated" in str(prediction(low=NAN, high=NAN, coverage=float("nan")))


def test_text_of_a_blind_answer_shows_ten_elements():
    many = tuple(f"X{i}" for i in range(30))
    arrays = {name: np.linspace(0.0, 0.4, 30) for name in ARRAYS}
    lines = str(prediction(elements=many, candidates_given=False, warnings=(), **arrays)).splitlines()
    assert lines[1] == "tiny-v1, every element in question, 10 shown, threshold 0.50"
    assert [line.split()[0] for line in lines[5:]] == [f"X{i}" for i in range(29, 19, -1)]


def test_sentence_of_one_of_two_and_of_none():
    assert prediction().sentence == (
        "GaAs probably contains Al (90%; about 12.5 at.%, 10.0 to 15.0) and In (60%; about 3.0 at.%, 2.0 to 4.0)."
    )
    assert prediction(threshold=0.7).sentence == "GaAs contains Al (90%; about 12.5 at.%, 10.0 to 15.0)."
    assert prediction(threshold=0.1).sentence.startswith("GaAs may contain Al (90%;")
    unknown = prediction(threshold=0.7, low=NAN, high=NAN, coverage=float("nan"))
    assert unknown.sentence == "GaAs contains Al (90%; about 12.5 at.%)."
    assert prediction(threshold=0.95).sentence == (
        "No dopant found in GaAs: the most probable element, Al, has probability 0.90, below the threshold of 0.95."
    )


def test_where_none_stands_out_none_is_marked_as_found():
    doubtful = prediction(probability=np.array([0.1, 0.2, 0.15]), threshold=0.12)
    assert doubtful.present == ("Al", "In")
    assert doubtful.found == ()
    assert doubtful.sentence == "No dopant of GaAs stands out; the most probable are Al (20%), In (15%), B (10%)."
    assert "yes" not in str(doubtful)
    assert doubtful.to_dict()["found"] == []
    assert prediction().found == prediction().present


def test_what_was_read_is_said():
    read = prediction(edge_mev=35.3, unit="meV and THz", kind="projected (Ga)")
    assert str(read).splitlines()[2] == "read as projected (Ga) DOS in meV and THz, host's band edge 35.3 meV"
    assumed = prediction(unit="meV", kind="total", kind_told=False)
    assert str(assumed).splitlines()[2] == "read as total DOS (assumed: no file says the kind, nor --kind) in meV"
    told = read.to_dict()
    assert (told["unit"], told["kind"], told["atoms_per_formula_unit"]) == ("meV and THz", "projected (Ga)", 2.0)
    assert "per formula unit" not in str(prediction(formula="Si"))  # the same number


def test_where_nothing_changed_nothing_is_present():
    same = prediction(unchanged="the two spectra do not differ beyond their stated errors")
    assert same.sentence == "No dopant found in GaAs: the two spectra do not differ beyond their stated errors."
    assert (same.present, same.found) == ((), ())
    assert not same.to_frame().present.any()
    assert not any(row["present"] for row in same.to_dict()["elements"])
    assert same.probability[1] == 0.9  # what the network said is kept
    unlisted = prediction(unchanged="the two spectra do not differ beyond their noise", something_else=0.9)
    assert unlisted.sentence == "No dopant found in GaAs: the two spectra do not differ beyond their noise."


def test_what_else_a_network_says_is_a_column():
    frame = prediction(further={"spread": np.array([0.1, 0.2, 0.3])}).to_frame()
    assert frame.spread.tolist() == [0.2, 0.3, 0.1]
    with pytest.raises(ConfigError, match=r"prediction.spread has shape \(2,\)"):
        prediction(further={"spread": np.zeros(2)})


def test_an_answer_cannot_be_changed():
    answer = prediction()
    with pytest.raises(FrozenInstanceError):
        answer.formula = "Si"
    with pytest.raises(ValueError, match="read-only"):
        answer.probability[0] = 1.0
