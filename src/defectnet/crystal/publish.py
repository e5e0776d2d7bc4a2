"""Host packs on the Hugging Face Hub: the same three files, in one commit, with a tag."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from defectnet.crystal.pack import FILES, HostPack, find_pack
from defectnet.errors import SimulationError
from defectnet.hub.card import model_card
from defectnet.hub.remote import Pushed, Remote, check_writable, own_file, publish
from defectnet.potentials.folder import CARD

_FRONT: Final = "---\nlicense: cc-by-4.0\ntags: [host-pack, force-constants]\n---\n\n"
"""What the Hub reads of a pack's card; `model_card` adds the tags of all that is published."""


def push_pack(
    source: str | Path,
    repo: str,
    *,
    tag: str | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> Pushed:
    """Upload a host pack to the Hugging Face Hub, after it has been loaded.

    Args:
        source: A bundled name, or a folder.
        repo: ``org/repo``; made if it is not there.
        tag: Name of the version, such as v1; one that exists with other files is never moved.
        private: Whether a repository that is made is private; one that exists stays as it is.
        token: By default the one of ``hf auth login`` or HF_TOKEN.
        commit_message: By default the host and what is uploaded.

    Raises:
        SimulationError: The pack is not whole, or the server refused.
    """
    remote = Remote(repo, "model", SimulationError)
    check_writable(remote, token)
    folder = find_pack(source)
    pack = HostPack.load(folder)
    card = folder / CARD
    if not card.is_file():
        raise SimulationError(f"{card} is missing", fix="Make the pack again, or write what it is")
    text = own_file(card, SimulationError).read_text(encoding="utf-8")
    files: dict[str, Path | bytes] = {name: folder / name for name in FILES}
    files[CARD] = model_card(text if text.startswith("---\n") else _FRONT + text, repo).encode()
    message = f"{pack.host.id}{f' {tag}' if tag else ''}: host pack of {len(pack.substitutions)} substitutions"
    return publish(remote, files, message=commit_message or message, tag=tag, private=private, token=token)
