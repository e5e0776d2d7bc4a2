"""The answer: sorted tables, plain values, and a text that a person reads."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from defectnet.prediction import Prediction

NAN = np.full(3, np.nan)


def prediction(**change: Any) -> Prediction:
    fields: dict[str, Any] = {
        "elements": ("B", "Al", "In"),
        "probability": np.array([0.2, 0.9, 0.6]),
        "concentration": np.array([0.01, 0.125, 0.03]),
        "low": np.array([0.0, 0.1, 0.02]),
        "high": np.array([0.02, 0.15, 0.04]),
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
    assert list(frame.columns) == ["element", "probability", "concentration", "low", "high", "present"]
    assert frame.element.tolist() == ["Al", "In", "B"]
    assert frame.present.tolist() == [True, True, False]
    assert frame.concentration.tolist() == [0.125, 0.03, 0.01]


def test_ties_stay_in_order_of_atomic_number():
    assert prediction(probability=np.full(3, 0.7)).present == ("B", "Al", "In")


def test_dict_is_json():
    values = json.loads(json.dumps(prediction().to_dict(), allow_nan=False))
    assert values["present"] == ["Al", "In"]
    assert values["elements"][0] == {
        "element": "Al",
        "probability": 0.9,
        "concentration": 0.125,
        "low": 0.1,
        "high": 0.15,
        "present": True,
    }
    unknown = json.loads(json.dumps(prediction(low=NAN, high=NAN, coverage=float("nan")).to_dict(), allow_nan=False))
    assert unknown["coverage"] is None
    assert unknown["elements"][0]["low"] is None


def test_text():
    lines = str(prediction()).splitlines()
    assert lines[0] == "GaAs, candidates given, tiny-v1"
    assert "90% interval" in lines[1]
    assert lines[2].split() == ["Al", "0.900", "12.50", "10.00", "to", "15.00", "yes"]
    assert lines[4].split()[-1] == "no"
    assert lines[5] == "warning: out of domain: a reason"
    assert "not calibrated" in str(prediction(low=NAN, high=NAN, coverage=float("nan")))


def test_text_of_a_blind_answer_shows_ten_elements():
    many = tuple(f"X{i}" for i in range(30))
    arrays = {name: np.linspace(0.0, 0.4, 30) for name in ("probability", "concentration", "low", "high")}
    lines = str(prediction(elements=many, candidates_given=False, warnings=(), **arrays)).splitlines()
    assert lines[0].startswith("GaAs, blind")
    assert [line.split()[0] for line in lines[2:]] == [f"X{i}" for i in range(29, 19, -1)]


def test_an_answer_cannot_be_changed():
    answer = prediction()
    with pytest.raises(FrozenInstanceError):
        answer.formula = "Si"
    with pytest.raises(ValueError, match="read-only"):
        answer.probability[0] = 1.0
