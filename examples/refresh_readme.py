"""Bring up to date what follows from the bundled checkpoints, parts of README.md and their own cards: make docs."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from defectnet import from_pretrained, list_checkpoints
from defectnet.cli import DEFAULT_CHECKPOINT
from defectnet.cli import main as command_line
from defectnet.files import into_block, replacing
from defectnet.hub.card import checkpoint_card, read_results
from defectnet.hub.catalogue import bundled
from defectnet.hub.io import CARD, CONFIG

EXAMPLES = Path(__file__).resolve().parent
README = EXAMPLES.parent / "README.md"
CARD_END = """\
What it is for, what it was trained on and where it fails: MODEL_CARD.md of the project. Above all: in crystals that it
has not seen an answer is a hint, best with candidates named, and no decision should rest on it alone. An independent
implementation, not by the authors of DefectNet (arXiv:2506.00725) and not endorsed by them.
"""


def checkpoint_table() -> str:
    """Return the bundled checkpoints as a Markdown table."""
    lines = ["| name | network | parameters | trained on | can be asked |", "|---|---|---|---|---|"]
    for name in list_checkpoints():
        model = from_pretrained(name)
        size = sum(parameter.numel() for parameter in model.parameters())
        seen = model.training_info
        default = " (default)" if name == DEFAULT_CHECKPOINT else ""
        lines.append(
            f"| `{name}`{default} | {type(model).__name__} | {size:,} | "
            f"{seen['train_pairs']:,} pairs of {seen['train_hosts']:,} crystals | {', '.join(model.tracks)} |"
        )
    return "\n".join(lines)


def example_output(known: bool) -> str:
    """Return the example's command and what it prints, as a Markdown code block: with a host pack, or by a network."""
    answer = json.loads((EXAMPLES / "answer.json").read_text(encoding="utf-8"))
    pair = ["--host", "examples/host.csv", "--doped", "examples/doped.csv"]
    pair += ["--pack", answer["pack"]] if known else ["--formula", answer["formula"]]
    pair += ["--candidates", answer["candidates"]]
    screen = StringIO()
    with redirect_stdout(screen):
        command_line(["identify", *(str(README.parent / word) if word.endswith(".csv") else word for word in pair)])
    lines = [f"$ defectnet identify {' '.join(pair)}", *(line.rstrip() for line in screen.getvalue().splitlines())]
    return "\n".join(["```text", *lines, "```"])


def refresh(text: str) -> str:
    """Return README.md with its blocks as they should be."""
    blocks = {
        "checkpoints": checkpoint_table(),
        "example": example_output(known=True),
        "network": example_output(known=False),
    }
    for name, block in blocks.items():
        text = into_block(text, name, block)
    return text


def card(name: str) -> str:
    """Return the card of a bundled checkpoint."""
    config = json.loads((bundled()[name] / CONFIG).read_text(encoding="utf-8"))
    parameters = sum(parameter.numel() for parameter in from_pretrained(name).parameters())
    results = read_results(EXAMPLES.parent / "benchmarks" / "results" / f"{name}.json", name)
    text = checkpoint_card(name, config, parameters, results, licence="mit")
    return f"{text}\n{CARD_END}"


def main() -> None:
    """Write README.md and the cards."""
    changed = {README: refresh(README.read_text(encoding="utf-8"))}
    changed |= {folder / CARD: card(name) for name, folder in bundled().items()}
    for path, text in changed.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
