"""Bring the parts of README.md up to date that follow from the bundled checkpoints: make docs."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from defectnet import from_pretrained, list_checkpoints
from defectnet.benchmark.report import into_block
from defectnet.cli import DEFAULT_CHECKPOINT
from defectnet.cli import main as command_line
from defectnet.files import replacing

EXAMPLES = Path(__file__).resolve().parent
README = EXAMPLES.parent / "README.md"


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


def example_output() -> str:
    """Return the example's command and what it prints, as a Markdown code block."""
    answer = json.loads((EXAMPLES / "answer.json").read_text(encoding="utf-8"))
    pair = ["--host", "examples/host.csv", "--doped", "examples/doped.csv", "--formula", answer["formula"]]
    pair += ["--candidates", answer["candidates"]]
    screen = StringIO()
    with redirect_stdout(screen):
        command_line(["identify", *(str(README.parent / word) if word.endswith(".csv") else word for word in pair)])
    lines = [f"$ defectnet identify {' '.join(pair)}", *(line.rstrip() for line in screen.getvalue().splitlines())]
    return "\n".join(["```text", *lines, "```"])


def refresh(text: str) -> str:
    """Return README.md with its two blocks as they should be."""
    return into_block(into_block(text, "checkpoints", checkpoint_table()), "example", example_output())


def main() -> None:
    """Write README.md."""
    with replacing(README) as temporary:
        temporary.write_text(refresh(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
