"""What is published of a network, and that nothing is published which its card does not describe.

What a server gets of it, and gives back: tests/test_hub_client.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from conftest import make_random_batch
from defectnet import cli
from defectnet.errors import CheckpointError, ConfigError
from defectnet.hub import (
    Pushed,
    from_pretrained,
    load,
    push_checkpoint,
    push_model,
    save,
    save_pretrained,
    verify,
)
from defectnet.hub.card import METRICS, eval_results, model_card, read_results
from defectnet.models.calibration import Calibration

CARD = "---\nlicense: mit\ntags: [dopants, own]\n---\n\n# Tiny\n\nWhat it is for.\n"


@pytest.fixture
def folder(tiny_model, tiny_batch, tmp_path) -> Path:
    return save(
        tiny_model("DefectNet"),
        tmp_path / "tiny",
        golden=tiny_batch,
        card=CARD,
        training={"epochs": 3},
    )


@pytest.fixture
def sent(monkeypatch) -> list[dict[str, bytes]]:
    """Files of every push; nothing leaves the process."""
    pushes: list[dict[str, bytes]] = []

    def publish(remote, files, *, tag, **settings) -> Pushed:
        pushes.append({path: x if isinstance(x, bytes) else x.read_bytes() for path, x in files.items()})
        return Pushed(remote.repo, "c" * 40, f"https://hub/{remote.repo}", tag, changed=True)

    monkeypatch.setattr("defectnet.hub.push.publish", publish)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    return pushes


def measured(**groups: object) -> dict[str, object]:
    return {"entrant": "tiny", "data": {"name": "toy"}, "split": "test", "results": {"blind": {"lab": groups}}}


def front_matter(card: bytes | str) -> dict[str, object]:
    text = card.decode() if isinstance(card, bytes) else card
    return yaml.safe_load(text.split("---\n")[1])


# Networks


def test_an_unchanged_network_is_pushed_as_the_files_it_came_from(folder, sent):
    pushed = push_model(from_pretrained(folder), "lab/tiny", tag="v1")
    assert (pushed.repo, pushed.tag, pushed.commit) == ("lab/tiny", "v1", "c" * 40)
    for name in ("config.json", "model.safetensors", "golden.safetensors"):
        assert sent[0][name] == (folder / name).read_bytes()


def test_a_changed_network_needs_a_new_card_and_gets_new_golden_outputs(folder, sent, tmp_path):
    model = from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(ConfigError, match="is not the network any more that the card"):
        push_model(model, "lab/tiny")
    with pytest.raises(ConfigError, match="Pass card="):
        save_pretrained(model, tmp_path / "new")
    assert not sent
    assert not (tmp_path / "new").exists()
    push_model(model, "lab/tiny", card="# Tuned")
    (tmp_path / "received").mkdir()
    for name, content in sent[0].items():
        (tmp_path / "received" / name).write_bytes(content)
    verify(tmp_path / "received", model)
    again = load(tmp_path / "received")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert again.training_info == {"epochs": 3}
    assert sent[0]["README.md"].endswith(b"# Tuned\n")
    assert "license" not in front_matter(sent[0]["README.md"])


def test_a_new_calibration_needs_a_new_card(folder, sent):
    model = from_pretrained(folder)
    model.calibration = Calibration(temperature_blind=2.0)
    with pytest.raises(ConfigError, match="Pass card="):
        push_model(model, "lab/tiny")


def test_a_network_that_was_never_saved_needs_card_and_inputs(tiny_model, sent, tmp_path):
    model = tiny_model("PaperDefectNet")
    with pytest.raises(ConfigError, match=r"PaperDefectNet has no sample inputs yet.*golden="):
        push_model(model, "lab/paper", card="# Paper")
    with pytest.raises(ConfigError, match="PaperDefectNet has no card yet"):
        push_model(model, "lab/paper", golden=make_random_batch(2))
    assert not sent
    push_model(model, "lab/paper", card="# Paper", golden=make_random_batch(2))
    assert json.loads(sent[0]["config.json"])["architecture"] == "PaperDefectNet"
    assert save_pretrained(model, tmp_path / "paper", card="# Paper", golden=make_random_batch(2)).name == "paper"


def test_saving_what_was_loaded_gives_the_same_files(folder, tmp_path):
    copy = save_pretrained(from_pretrained(folder), tmp_path / "copy")
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }


def test_the_card_is_part_of_a_checkpoint(folder, sent):
    (folder / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README.md is missing"):
        push_checkpoint(folder, "lab/tiny")
    assert not sent


def test_the_command_says_where_it_went(folder, sent, tmp_path, capsys):
    result = tmp_path / "tiny.json"
    result.write_text(json.dumps(measured(concentration={"mae": 0.5})))
    cli.main(["push", str(folder), "lab/tiny", "--metrics", str(result)])
    assert capsys.readouterr().out == f"lab/tiny pushed: commit {'c' * 40}\nhttps://hub/lab/tiny\n"
    assert set(sent[0]) == {"config.json", "model.safetensors", "golden.safetensors", "README.md"}
    assert front_matter(sent[0]["README.md"])["metrics"] == ["mae"]


# Cards


def test_a_card_keeps_what_it_states(folder):
    card = model_card(CARD, "lab/tiny")
    assert card.endswith(CARD.split("---\n")[2])
    front = front_matter(card)
    assert front["license"] == "mit"
    assert front["tags"] == ["dopants", "own", "defectnet", "materials-science", "phonons"]
    assert model_card(card, "lab/tiny") == card


def test_a_card_without_front_matter_gets_one():
    card = model_card("# Tiny\n", "lab/tiny")
    assert front_matter(card)["library_name"] == "defectnet"
    assert card.endswith("# Tiny\n")


def test_new_numbers_replace_old_ones():
    old = model_card(CARD, "lab/tiny", read_results(measured(concentration={"mae": 0.5, "r2": 0.1})), "lab/pairs")
    new = model_card(old, "lab/tiny", read_results(measured(identity={"f1": 0.25})), "lab/pairs")
    (index,) = front_matter(new)["model-index"]
    assert [(metric["type"], metric["value"]) for part in index["results"] for metric in part["metrics"]] == [
        ("f1", 0.25)
    ]
    assert front_matter(model_card(old, "lab/tiny"))["model-index"] == front_matter(old)["model-index"]


def test_every_number_has_a_task_of_its_own():
    tree = {"concentration": {}, "identity": {}}
    for number, metric in enumerate(METRICS):
        group, key = metric.split(".")
        tree[group][key] = number / 8
    results = read_results(measured(**tree))
    ((path, content),) = eval_results(results, "lab/pairs").items()
    assert path == ".eval_results/defectnet-pairs.yaml"
    entries = yaml.safe_load(content)
    assert [entry["value"] for entry in entries] == [number / 8 for number in range(len(METRICS))]
    assert len({entry["dataset"]["task_id"] for entry in entries}) == len(METRICS)


@pytest.mark.parametrize("front", ["tags: [", "- a\n- b", "tags: 7", "model-index: 3"])
def test_malformed_front_matter_is_one_error(front):
    with pytest.raises(CheckpointError, match=r"README.md: the front matter cannot be used") as caught:
        model_card(f"---\n{front}\n---\n# Tiny\n", "lab/tiny", read_results(measured(concentration={"mae": 1.0})))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_there_are_left_out():
    odd = {"mae": 1.0, "rmse": None, "r2": "good"}
    results = read_results(
        measured(concentration=odd, identity={"f1": True, "ap_micro": [1], "ap_macro": float("inf")})
    )
    assert [(number.metric, number.value) for number in results.numbers] == [("concentration.mae", 1.0)]
    assert (results.data, results.split) == ("toy", "test")


def test_metrics_of_the_training_record_are_used_if_none_are_given(tiny_model, tiny_batch, tmp_path, sent):
    training = {"metrics": measured(concentration={"mae": 0.75})}
    save(tiny_model("DefectNet"), tmp_path / "own", golden=tiny_batch, card=CARD, training=training)
    push_checkpoint(tmp_path / "own", "lab/own", dataset="lab/pairs")
    assert yaml.safe_load(sent[0][".eval_results/defectnet-pairs.yaml"])[0]["value"] == 0.75


RESULTS = {
    "no file": (None, "cannot be read"),
    "no JSON": ("{", "is not valid JSON"),
    "a list": ("[]", "holds a list, not an object"),
    "empty": ("{}", "holds no results"),
    "results are a list": ('{"results": []}', "holds no results"),
    "no known number": (json.dumps(measured(speed={"pairs_per_s": 3.0})), "holds no results"),
    "conditions are numbers": ('{"results": {"blind": 3}}', "holds no results"),
    "another network": (json.dumps(measured(concentration={"mae": 1.0}) | {"entrant": "huge"}), "of 'huge', not of"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_malformed_metrics_are_one_error(folder, sent, tmp_path, case):
    content, message = RESULTS[case]
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        push_checkpoint(folder, "lab/tiny", metrics=path)
    assert str(path) in str(caught.value)
    assert caught.value.fix
    assert not sent


@pytest.mark.parametrize("dataset", ["pairs", "a/b/c", "https://hub/a/b"])
def test_the_data_set_of_metrics_is_one_of_the_hub(folder, sent, dataset):
    with pytest.raises(CheckpointError, match="is no data set on the Hub"):
        push_checkpoint(folder, "lab/tiny", dataset=dataset)
