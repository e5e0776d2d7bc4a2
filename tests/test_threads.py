"""One network, many askers: threads, forked processes, batches of any size, and a row that cannot be answered."""

from __future__ import annotations

import multiprocessing
import pickle
import threading

import pytest
import torch

from conftest import make_random_batch
from defectnet.batch import Batch
from defectnet.errors import ConfigError, FormulaError, SimulationError, SpectrumError
from defectnet.models import base
from spectra import spectrum


def test_threads_that_share_a_network_get_what_one_gets(model):
    batch, wrong = make_random_batch(3), []
    wanted = model.predict_batch(batch)
    model.train()
    before = {name: x.clone() for name, x in model.state_dict().items()}

    def ask() -> None:
        try:
            for precision in (64, 32, 64):
                found = model.predict_batch(batch, precision=precision)
                close = torch.equal if precision == 64 else torch.allclose
                if not close(found.identity_logits, wanted.identity_logits):
                    wrong.append(precision)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    after = model.state_dict()
    assert all(x.dtype == after[name].dtype and torch.equal(x, after[name]) for name, x in before.items())
    assert all(module.training for module in model.modules())


def _asked(model, batch, answers) -> None:
    answers.put(model.predict_batch(batch).identity_logits.sum().item())


def test_a_forked_process_answers_after_its_parent_did(tiny_model):
    model, batch, threads = tiny_model("DefectNet"), make_random_batch(64), torch.get_num_threads()
    torch.set_num_threads(2)  # OpenMP keeps a thread, which the child has not
    try:
        wanted = model.predict_batch(batch).identity_logits.sum().item()
        fork = multiprocessing.get_context("fork")
        answers = fork.SimpleQueue()
        child = fork.Process(target=_asked, args=(model, batch, answers))
        child.start()
        child.join(timeout=60)
        alive = child.is_alive()
        child.kill()
    finally:
        torch.set_num_threads(threads)
    assert not alive
    assert answers.get() == pytest.approx(wanted)


def test_memory_does_not_grow_with_the_batch_size_that_is_asked(tiny_model, monkeypatch):
    model, batch, sizes = tiny_model("DefectNet"), make_random_batch(20), []
    whole = model.predict_batch(batch)
    monkeypatch.setattr(base, "MOST_ROWS", 8)
    forward = type(model).forward

    def watched(self, piece):
        sizes.append(len(piece.host))
        return forward(self, piece)

    monkeypatch.setattr(type(model), "forward", watched)
    pieces = model.predict_batch(batch, batch_size=100_000)
    assert sizes == [8, 8, 4]
    assert torch.equal(pieces.identity_logits, whole.identity_logits)


def set_row(name: str, value: float, row: int = 2):
    def change(batch: Batch) -> Batch:
        field = getattr(batch, name).clone()
        field[row] = value
        return batch._replace(**{name: field})

    return change


ROWS = {
    "no host": (set_row("composition", 0.0), "row 2 of the batch: composition names no element"),
    "NaN": (set_row("doped", float("nan")), "row 2 of the batch: doped holds NaN or infinity"),
    "infinite edge": (set_row("edge_mev", float("inf"), 4), "row 4 of the batch: edge_mev holds NaN"),
    "no edge": (set_row("edge_mev", 0.0), "row 2 of the batch: the band edge is not positive"),
    "unknown kind": (set_row("kind", 99), "row 2 of the batch: kind is none of the known ones"),
    "other grid": (lambda b: b._replace(host=b.host[:, :10], doped=b.doped[:, :10]), r"shape \(5, 10\). Use 256 bins"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_answered_is_named(tiny_model, case):
    change, message = ROWS[case]
    with pytest.raises(ConfigError, match=message):
        tiny_model("DefectNet").predict_batch(change(make_random_batch(5)))


def test_a_query_that_cannot_be_asked_is_named(tiny_model):
    model, host = tiny_model("DefectNet"), spectrum("meV")
    with pytest.raises(FormulaError, match=r"^query 1: formula"):
        model.predict_many([(host, host, "GaAs"), (host, host, "Xx")])
    with pytest.raises(FormulaError, match=r"^formula"):
        model.predict(host, host, "Xx")


def test_weights_beyond_belief_are_one_error(tiny_model):
    model = tiny_model("DefectNet")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3e38)
    with pytest.raises(ConfigError, match="cannot answer rows 0 to 4 of the batch"):
        model.predict_batch(make_random_batch(5))


@pytest.mark.parametrize("kind", [ConfigError, SimulationError, SpectrumError])
def test_errors_come_out_of_another_process_as_they_went_in(kind):
    """One that does not ends a pool of processes, and with it all the others' work."""
    error = kind("host x: it is unstable", fix="Take another", why="1.7 % of its modes")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.what, again.why, again.fix) == (str(error), error.what, error.why, error.fix)
