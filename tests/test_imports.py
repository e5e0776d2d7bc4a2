"""The layers of the package hold, and `import defectnet` stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import defectnet
from defectnet.hub import save
from defectnet.models.registry import ARCHITECTURES

PACKAGE = Path(defectnet.__file__).parent

# A file may import from its own entry, and from entries of lower layers.
LAYERS: dict[str, int] = {
    **dict.fromkeys(
        (
            "errors",
            "defaults",
            "elements",
            "files",
            "config",
            "rng",
            "spectrum",
            "measure",
            "batch",
            "prediction",
            "provenance",
            "processes",
        ),
        0,
    ),
    "io": 1,
    "nn": 1,
    "models": 2,
    "hub": 3,
    "potentials": 4,
    "crystal": 5,
    "data": 6,
    "inference": 7,
    "tasks": 7,
    "simulate": 9,
    "distil": 10,
    "benchmark": 10,
    **dict.fromkeys(("__init__", "__main__", "cli", "plotting", "pipeline", "train", "export", "lab", "app"), 11),
}
DRAWS = {("prediction.py", "defectnet.plotting"), ("inference/answer.py", "defectnet.plotting")}
"""An answer's own `plot`, which imports when it is called, and nothing else reaches up."""
SIDEWAYS = {0, 11}  # layers whose files may import each other
LIGHTNING = ("tasks/", "data/module.py", "train.py", "lab/", "distil/")
LIGHT = (
    "lightning",
    "pyarrow",
    "scipy",
    "sklearn",
    "lightgbm",
    "ase",
    "matplotlib",
    "pandas",
    "defectnet.potentials",
    "defectnet.crystal",
    "defectnet.simulate",
    "defectnet.data",
)


DYNAMIC = {"import_module", "__import__", "resolve_name", "find_spec", "run_module"}


def imports(path: Path, *, types: bool = True) -> set[str]:
    """Return every module that a file imports, at any depth, in functions too.

    Where a file imports by name (`importlib.import_module`), each text in it that is the name of a module of the
    package counts as imported: literals, and the values of tables that names are looked up in.

    Args:
        path: The file.
        types: Whether imports under TYPE_CHECKING count.
    """
    package = ["defectnet", *path.relative_to(PACKAGE).parts[:-1]]
    found, texts, dynamic = set(), set(), False
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            # `from defectnet import elements` imports a module, `from defectnet.elements import INDEX` a name of one.
            inside = {f"{module}.{alias.name}" for alias in node.names}
            found |= inside if module == "defectnet" else {name if is_module(name) else module for name in inside}
            dynamic |= any(alias.name in DYNAMIC for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Name):
            dynamic |= (node.attr if isinstance(node, ast.Attribute) else node.id) in DYNAMIC
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return found | {text for text in texts if dynamic and is_module(text)}


def is_module(name: str) -> bool:
    """Return whether a text is the name of a module in the package."""
    root, *rest = name.split(".")
    place = PACKAGE.joinpath(*rest)
    return (
        root == "defectnet" and bool(rest) and (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file())
    )


def circle() -> list[str]:
    """Return files that import each other in a circle, if any do; imports for type checkers do not count."""
    files = {".".join(("defectnet", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    try:
        TopologicalSorter({name: imports(path, types=False) & files.keys() for name, path in files.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def violations(path: Path) -> list[str]:
    place = path.relative_to(PACKAGE)
    own = place.parts[0].removesuffix(".py")
    if own not in LAYERS:
        return [f"{place}: {own} has no layer"]
    wrong = []
    for module in sorted(imports(path)):
        root, *rest = module.split(".")
        if root == "lightning" and not place.as_posix().startswith(LIGHTNING):
            wrong.append(f"{place} imports {module}")
        if root != "defectnet" or not rest or rest[0] == own or (place.as_posix(), module) in DRAWS:
            continue
        target = rest[0] if rest[0] in LAYERS else "__init__"  # a name that the package itself offers
        allowed = LAYERS[target] < LAYERS[own] or (LAYERS[target] == LAYERS[own] and LAYERS[own] in SIDEWAYS)
        if not allowed:
            wrong.append(f"{place} imports {module}: layer {LAYERS[own]} may not see layer {LAYERS[target]}")
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path):
    assert violations(path) == []


def test_no_file_imports_itself_by_way_of_others():
    assert circle() == []


def test_the_walk_notices_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setattr("test_imports.PACKAGE", tmp_path)
    for name in ("nn", "hub"):
        (tmp_path / name).mkdir()
    (tmp_path / "hub" / "push.py").write_text("def push():\n    from defectnet.nn import new")
    cases = {
        "from importlib import import_module\ndef f():\n    return import_module('defectnet.hub.push')": 1,
        "import importlib\nHOMES = {'push': 'defectnet.hub.push'}\nimportlib.import_module(HOMES['push'])": 1,
        "__import__('defectnet.hub.push')": 1,
        "# Nothing is imported\nNAME = 'defectnet.hub.push'": 0,
        "from defectnet.models import base": 1,
        "def f():\n    import defectnet.hub.io": 1,
        "from ..models.base import DefectModel": 1,
        "from defectnet import io": 1,  # sideways
        "from defectnet import from_pretrained": 1,
        "import lightning.pytorch": 1,
        "from defectnet.errors import ConfigError\nfrom defectnet.nn.heads import IdentityHead\nimport torch": 0,
    }
    for code, count in cases.items():
        (tmp_path / "nn" / "new.py").write_text(code)
        assert len(violations(tmp_path / "nn" / "new.py")) == count, code
        assert bool(circle()) == ("hub.push" in code and count > 0), code
    (tmp_path / "helpers.py").write_text("")
    assert violations(tmp_path / "helpers.py") == ["helpers.py: helpers has no layer"]


def classes(root: Path) -> dict[str, list[str]]:
    """Return public class name -> files that define it."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(root)))
    return found


def test_no_public_class_name_exists_twice():
    assert {name: files for name, files in classes(PACKAGE).items() if len(files) > 1} == {}


def test_a_class_name_that_exists_twice_is_noticed(tmp_path):
    (tmp_path / "one.py").write_text("class Row:\n    class Inner: ...\nclass _Own: ...\n")
    (tmp_path / "two.py").write_text("def f():\n    class Row: ...\nclass _Own: ...\n")
    assert classes(tmp_path) == {"Row": ["one.py", "two.py"], "Inner": ["one.py"]}


def test_names_of_networks_are_known_in_their_own_layer_alone():
    """What a network is able to, and how its loss is made, it says itself: `asks_blind`, `loss_terms`, `expected`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith("models/"):
            continue
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not set(ARCHITECTURES) & set(texts), place


def loaded_after(code: str) -> list[str]:
    """Run code in a fresh interpreter and return which of `LIGHT` it has loaded."""
    report = f"import sys, json; print(json.dumps([name for name in {LIGHT!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_light():
    assert loaded_after("import defectnet") == []


def test_the_forward_model_is_light():
    assert loaded_after("import defectnet.measure.forward, defectnet.measure.encode") == []
    code = "import sys, defectnet.spectrum; assert 'torch' not in sys.modules"  # reading a file must not wait for it
    assert loaded_after(code) == []


def test_prediction_is_light(tiny_model, tiny_batch, tmp_path):
    folder = save(tiny_model("DefectNet"), tmp_path / "tiny", golden=tiny_batch, card="# Tiny", training={})
    code = f"""
import numpy as np
import defectnet
defectnet.list_checkpoints(), defectnet.Spectrum, defectnet.Prediction, defectnet.read_spectrum
energy = np.linspace(0, 80, 161)
dos = energy**2 * (energy < 60)
print(defectnet.from_pretrained({str(folder)!r}).predict((energy, dos), (energy, dos), "Si", unit="meV"))
"""
    assert loaded_after(code) == []


def test_the_check_of_loaded_modules_can_fail():
    assert loaded_after("import pandas") != []


def test_the_package_offers_what_it_lists():
    assert set(defectnet.__all__) <= set(dir(defectnet))
    for name in defectnet.__all__:
        assert getattr(defectnet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'from_petrained'"):
        _ = defectnet.from_petrained
