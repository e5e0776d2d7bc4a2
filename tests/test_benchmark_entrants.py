"""Whatever a user names is found or refused in one clear error, and whatever it answers is checked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmark_results import ELEMENTS
from conftest import make_random_batch
from defectnet.batch import Estimate, Output
from defectnet.benchmark.baselines import BASELINES
from defectnet.benchmark.entrants import Entrant, ask, call, check_alone, entrant_named, entrant_of
from defectnet.benchmark.results import read_results
from defectnet.cli import EXIT_ERROR, main
from defectnet.errors import ConfigError
from defectnet.hub import save
from defectnet.models.calibration import Calibration, Interval
from defectnet.models.estimator import Estimator
from make_shards import toy_sample, write_toy_folder

MODULE = '''
from defectnet.batch import Estimate
from defectnet.models.estimator import Estimator


class HalfAPercent(Estimator):
    """Half a percent of everything."""

    def estimate(self, batch):
        asked = batch.candidates.float()
        return Estimate(probability=0.1 * asked, expected_concentration=0.005 * asked)


class Greedy(Estimator):
    def __init__(self, share):
        self.share = share


class Silent:
    pass


class Broken:
    def __init__(self):
        raise RuntimeError("no licence")


def make():
    return HalfAPercent()


ready = HalfAPercent()
number = 3


class Inside:
    Deeper = HalfAPercent
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A working directory with a module of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "own_broken.py").write_text("import json\n\n1 / 0\n", encoding="utf-8")
    (tmp_path / "own_needy.py").write_text("import a_package_that_is_not_there\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return tmp_path


def asking(answer, name="own"):
    """An entrant whose estimate is a function of the batch."""

    class Own(Estimator):
        def estimate(self, batch):
            return answer(batch)

    return Entrant(name, Own())


def half(batch):
    return torch.full(batch.candidates.shape, 0.5)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["HalfAPercent", "make", "ready", "Inside.Deeper"])
def test_own_classes_instances_and_functions(module, tiny_batch, attribute):
    entrant = entrant_named(f"own_models:{attribute}")
    assert entrant.name == attribute.rpartition(".")[2]
    assert entrant.kind == "module"
    assert ask(entrant, tiny_batch).probability.max() == pytest.approx(0.1)
    assert str(module) not in sys.path


WRONG = {
    "nope": "neither a baseline nor a checkpoint",
    "absent_module:x": "there is no module 'absent_module'",
    "own_models.inside:x": "there is no module|cannot be imported",
    "own_models:Absent": "'own_models' has no 'Absent'. It has: .*HalfAPercent",
    "own_models:Inside.Absent": "has no 'Inside.Absent'",
    "own_models:": "has no ''",
    ":Own": "'' is no name of a module",
    "own models:Own": "'own models' is no name of a module",
    "own_models:Greedy": r"cannot be made without arguments \(TypeError",
    "own_models:Broken": "RuntimeError: no licence, own_models.py line 25",
    "own_models:Silent": "is a Silent, no Estimator. Derive it from defectnet.models.estimator",
    "own_models:number": "is a int, no Estimator",
    "own_broken:x": "ZeroDivisionError: division by zero, own_broken.py line 3",
    "own_needy:x": "No module named 'a_package_that_is_not_there'",
    "./absent": "absent does not exist",
    "defectnet-small+nope": "'nope' is neither a baseline nor a checkpoint",
    "defectnet-small+ridge": "ensemble 'defectnet-small[+]ridge' has a member that learns",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_asked_is_one_clear_error(module, capsys, text):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "--model", text, "--data", str(module)])
    said = capsys.readouterr()
    assert stop.value.code == EXIT_ERROR
    assert said.out == ""
    assert said.err.startswith("defectnet: ")
    assert said.err.count("\n") == 1
    with pytest.raises(ValueError, match=WRONG[text]):
        entrant_named(text)


def test_an_ensemble_is_the_mean_of_its_members(module, tiny_batch):
    (module / "own_sure.py").write_text(MODULE.replace("0.1 *", "0.5 *").replace("0.005 *", "0.015 *"), "utf-8")
    entrant = entrant_named("own_models:HalfAPercent+own_sure:HalfAPercent")
    answer, asked = ask(entrant, tiny_batch), tiny_batch.candidates
    assert torch.allclose(answer.probability[asked], torch.tensor(0.3, dtype=answer.probability.dtype))
    assert torch.allclose(answer.expected_concentration[asked], torch.tensor(0.01, dtype=torch.float64))
    assert answer.low is None


def test_an_ensemble_is_asked_what_all_its_members_can_be_asked():
    entrant = entrant_named("defectnet-small+paper-defectnet")
    assert set(entrant.cannot) == {"blind"}
    assert entrant.estimator.coverage is None
    assert entrant.name == "defectnet-small+paper-defectnet"
    assert entrant.notes["members"] == ["DefectNet", "PaperDefectNet"]


def test_baselines_are_named(tiny_batch):
    for name, kind in BASELINES.items():
        entrant = entrant_named(name)
        assert (entrant.name, type(entrant.estimator), entrant.kind) == (name, kind, "baseline")
        assert entrant.notes["description"]


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_answers_as_it_does_elsewhere(tiny_model):
    model, batch = tiny_model("DefectNet"), make_random_batch(8)
    model.calibration = Calibration(2.0, 0.5, interval=Interval(0.8, 0.01, 0.1))
    entrant = entrant_of(model)
    answer, output = ask(entrant, batch), model.predict_batch(batch)
    given = batch.candidates_given
    logits = output.identity_logits / torch.where(given, 2.0, 0.5)[:, None]
    asked = batch.candidates
    assert torch.allclose(answer.probability[asked].float(), torch.sigmoid(logits)[asked], atol=1e-6)
    expected = model.expected(Output(logits, output.concentration_if_present))
    assert torch.allclose(answer.expected_concentration[asked].float(), expected[asked], atol=1e-6)
    assert torch.allclose(
        answer.concentration_if_present[asked].float(), output.concentration_if_present[asked], atol=1e-6
    )
    width = 2 * (0.01 + 0.1 * answer.concentration_if_present)
    inside = asked & (answer.low > 0) & (answer.high < 1)
    assert inside.any()
    assert torch.allclose((answer.high - answer.low)[inside], width[inside])
    assert entrant.estimator.coverage == 0.8
    assert entrant.notes["architecture"] == "DefectNet"
    assert not entrant.cannot


def test_the_published_network_is_not_asked_blind(tiny_model):
    entrant = entrant_of(tiny_model("PaperDefectNet"))
    assert set(entrant.cannot) == {"blind"}
    batch = make_random_batch(4)._replace(candidates_given=torch.ones(4, dtype=torch.bool))
    answer, output = ask(entrant, batch), entrant.estimator.predict_batch(batch)
    # It regresses the expectation itself: that is not multiplied by a probability again.
    asked = batch.candidates
    assert torch.allclose(answer.expected_concentration[asked].float(), output.concentration_if_present[asked])
    assert answer.low is None


def test_an_instance_of_a_network_is_a_checkpoint(module, tiny_model, monkeypatch):
    import types

    own = types.ModuleType("own_networks")
    own.model = tiny_model("DefectNet")
    monkeypatch.setitem(sys.modules, "own_networks", own)
    entrant = entrant_named("own_networks:model")
    assert entrant.estimator is own.model
    assert entrant.kind == "checkpoint"
    assert entrant.name == "model"


# -- answers -----------------------------------------------------------------------------------------------------------

BAD = {
    "no estimate": (lambda b: half(b), "estimate returns a Tensor"),
    "none": (lambda b: None, "estimate returns a NoneType"),
    "plain tuple": (lambda b: (half(b), half(b)), "estimate returns a tuple"),
    "text": (lambda b: Estimate("much", half(b)), "probability is a str"),
    "no probability": (lambda b: Estimate(None, half(b)), "probability or expected_concentration is None"),
    "no concentration": (lambda b: Estimate(half(b), None), "probability or expected_concentration is None"),
    "fewer rows": (lambda b: Estimate(half(b)[1:], half(b)), r"probability has shape \(5, 62\), for 6 rows"),
    "fewer elements": (lambda b: Estimate(half(b), half(b)[:, 1:]), r"expected_concentration has shape \(6, 61\)"),
    "one number": (lambda b: Estimate(torch.tensor(0.5), half(b)), r"probability has shape \(\)"),
    "nan": (lambda b: Estimate(half(b) * float("nan"), half(b)), "probability is not finite"),
    "infinite": (lambda b: Estimate(half(b), half(b), half(b) / 0), "concentration_if_present is not finite"),
    "logits": (lambda b: Estimate(half(b) - 3, half(b)), "probability is -2.5. Use 0 to 1"),
    "per cent": (
        lambda b: Estimate(half(b), 10 * half(b)),
        "concentration is 5. Use 0 to 1: atomic fractions",
    ),
    "amount": (lambda b: Estimate(half(b), half(b), 10 * half(b)), "concentration_if_present is 5"),
    "one end": (lambda b: Estimate(half(b), half(b), low=half(b)), "only one end of the interval"),
    "crossed": (lambda b: Estimate(half(b), half(b), None, half(b), 0.5 * half(b)), "low above high"),
    "error": (lambda b: b.nothing, "estimate fails .*AttributeError.*test_benchmark_entrants.py line"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_answer_is_one_clear_error(tiny_batch, name):
    answer, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        ask(asking(answer), tiny_batch)
    assert str(caught.value).startswith("own: ")


def test_what_is_not_in_question_is_not_looked_at(tiny_batch):
    def answer(batch):
        odd = torch.where(batch.candidates, 0.5, float("nan"))
        return Estimate(odd, torch.where(batch.candidates, 0.1, -7.0))

    found = ask(asking(answer), tiny_batch)
    assert found.probability[~tiny_batch.candidates].abs().max() == 0.0
    assert found.expected_concentration[~tiny_batch.candidates].abs().max() == 0.0
    assert (found.probability[tiny_batch.candidates] == 0.5).all()


def test_arrays_and_single_precision_are_taken(tiny_batch):
    def answer(batch):
        return Estimate(half(batch).numpy() + 0.5000001, half(batch).half())

    found = ask(asking(answer), tiny_batch)
    assert float(found.probability.max()) == 1.0
    assert found.expected_concentration.dtype == torch.float64


def test_answers_that_depend_on_batch_mates_are_found(tiny_batch):
    def by_batch(batch):
        shared = half(batch) * batch.host.mean() / batch.host.mean(1, keepdim=True).clamp_min(batch.host.mean())
        rank = batch.edge_mev.argsort().argsort().double() / 10.0
        return Estimate(shared, half(batch) * rank[:, None])

    def by_order(batch):
        return Estimate(half(batch) * torch.linspace(0.5, 1.0, len(batch.host))[:, None], half(batch))

    def by_chance(batch):
        return Estimate(torch.rand(batch.candidates.shape), half(batch))

    def by_size(batch):
        low = None if len(batch.host) == 1 else 0.5 * half(batch)
        return Estimate(half(batch), half(batch), None, low, low)

    for answer, message in (
        (by_batch, "alone"),
        (by_order, "alone"),
        (by_chance, "alone"),
        (by_size, "some rows only"),
    ):
        entrant = asking(answer)
        with pytest.raises(ConfigError, match=message):
            check_alone(entrant, tiny_batch, ask(entrant, tiny_batch))
    honest = asking(lambda batch: Estimate(half(batch), half(batch)))
    check_alone(honest, tiny_batch, ask(honest, tiny_batch))


def test_errors_of_the_package_pass_through(tiny_batch):
    def answer(batch):
        raise ConfigError("the licence is missing", fix="Buy one")

    with pytest.raises(ConfigError, match=r"^the licence is missing\. Buy one\.$"):
        ask(asking(answer), tiny_batch)
    with pytest.raises(ConfigError, match="own: fit fails"):
        call(asking(answer), "fit", None)


def test_gradients_are_not_kept(tiny_batch):
    weights = torch.nn.Parameter(torch.full((ELEMENTS,), 0.5))
    found = ask(asking(lambda batch: Estimate(weights * half(batch), half(batch))), tiny_batch)
    assert not found.probability.requires_grad


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    samples = [toy_sample(i, split) for i, split in enumerate(["train"] * 8 + ["val"] * 8 + ["test"] * 10)]
    return write_toy_folder(tmp_path_factory.mktemp("command") / "toy", samples)


def test_command_writes_files_and_prints_tables(module, folder, tiny_model, capsys):
    save(tiny_model("PaperDefectNet"), module / "tiny", golden=make_random_batch(2), card="A test.", training={})
    models = ["--model", "own_models:HalfAPercent", "--model", "mean", "--model", "./tiny"]
    main(["benchmark", *models, "--data", str(folder), "--bootstrap", "20", "--out", "results", "--condition", "lab"])
    said = capsys.readouterr()
    assert "toy, test split: 10 pairs" in said.out
    assert said.out.count("HalfAPercent") == 2
    assert said.out.count("tiny") == 1
    assert "not asked blind: takes the candidates as its query" in said.err
    results = {result["entrant"]: result for result in read_results(["results"])}
    assert set(results) == {"HalfAPercent", "mean", "tiny"}
    assert results["HalfAPercent"]["notes"]["description"] == "Half a percent of everything."
    assert results["mean"]["kind"] == "baseline"
    assert list(results["tiny"]["results"]) == ["candidates"]


def test_json_is_all_there_is_on_stdout(module, folder, capsys):
    words = ["--track", "blind", "--condition", "clean", "--split", "val", "--bootstrap", "0"]
    main(["benchmark", "--model", "own_models:make", "--data", str(folder), *words, "--json"])
    result = json.loads(capsys.readouterr().out)[0]
    assert result["split"] == "val"
    assert list(result["results"]) == ["blind"]
    part = result["results"]["blind"]["clean"]
    assert part["intervals"] == {}
    assert part["concentration"]["mae"] == pytest.approx(0.5, abs=0.5)


def test_a_single_model_is_shown_in_parts(module, folder, capsys):
    words = ["--track", "candidates", "--condition", "clean", "--bootstrap", "0"]
    main(["benchmark", "--model", "own_models:make", "--data", str(folder), *words])
    assert "make: candidates, clean, in parts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "mean", "--track", "deaf"], "track is 'deaf'"),
        (["--model", "mean", "--condition", "dirty"], "condition is 'dirty'"),
        (["--model", "mean", "--split", "train"], "split is 'train'"),
        (["--model", "mean", "--model", "mean"], "two models are called 'mean'"),
        (["--model", "mean", "--bootstrap", "-1"], "bootstrap is -1"),
        (["--model", "mean", "--data", "absent"], "data folder absent does not exist"),
    ],
)
def test_wrong_words_are_one_line(folder, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "--data", str(folder), *words])
    said = capsys.readouterr()
    assert stop.value.code == EXIT_ERROR
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_reading_results_needs_no_sklearn():
    """The report is written where the results are read, which need not be where they were measured."""
    code = "import sys, defectnet.benchmark.tables; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
