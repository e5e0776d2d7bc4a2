"""Code blocks of Markdown documents."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- parsed: (.+?) -->", re.DOTALL)
PROGRAMS = ("defectnet", "python", ".venv/bin/python", "pip", "make", "hf", "srun", "python3")


@dataclass(frozen=True)
class Block:
    """A code block: where it begins, its language as written, its text, and why it is parsed and not run."""

    path: Path
    line: int
    language: str
    text: str
    mark: str | None

    @property
    def id(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def python(self) -> bool:
        return self.language == "python"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command line, where the block is one of a shell."""
        if self.language not in ("", "bash", "text"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "text":  # a session: what is typed, and what is answered
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        begin = tuple(f"{program} " for program in PROGRAMS)
        return [shlex.split(line, comments=True) for line in lines if line.strip().startswith(begin)]


def blocks(path: Path) -> list[Block]:
    """Return the code blocks of a document; a mark is a comment in the line before."""
    found, mark = [], None
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
        if token.type == "html_block":
            match = MARK.search(token.content)
            mark = match and " ".join(match[1].split())
        elif token.type in ("fence", "code_block"):
            # Indented blocks may hold several pieces; a directive of the site is a fence with a name in braces.
            found.append(Block(path, token.map[0] + 1, token.info.strip(), token.content, mark))
            mark = None
        elif token.type not in ("list_item_open", "bullet_list_open"):
            mark = None
    return found
