"""``defectnet push``, ``data push`` and ``checkpoints``: what is published, and what has a name."""

from __future__ import annotations


def push(
    name: str,
    repo: str,
    *,
    tag: str | None = None,
    private: bool = False,
    metrics: str | None = None,
    dataset: str | None = None,
    message: str | None = None,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub: weights, settings, golden outputs and card, in one commit.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        name: Bundled name, or a folder such as ./run/best.
        repo: Where to, as org/repo; made if it is not there.
        tag: Name of the version, such as v1.
        private: Make the repository private if it is not there.
        metrics: JSON file of `defectnet benchmark`, whose numbers the card then states.
        dataset: The data set on the Hub that the metrics were measured on, as org/name; adds them to its leaderboard.
        message: Of the commit.
    """
    from defectnet.hub import push_checkpoint

    print(
        push_checkpoint(name, repo, tag=tag, private=private, metrics=metrics, dataset=dataset, commit_message=message)
    )


def data_push(
    folder: str, repo: str, *, tag: str | None = None, public: bool = False, message: str | None = None
) -> None:
    """Publish a data set on the Hugging Face Hub, as one commit; every shard is read first.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        repo: Where to, as org/name; made if it is not there.
        tag: Name of the version, such as v1.
        public: Make the repository public if it is not there.
        message: Of the commit.
    """
    from defectnet.data.source import push_dataset

    print(push_dataset(folder, repo, tag=tag, private=not public, commit_message=message))


def checkpoints() -> None:
    """List the checkpoints that have a name: those that come with the package, and published ones."""
    from json import loads

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from defectnet.hub.catalogue import PUBLISHED, bundled

    table = Table("name", "architecture", box=None, pad_edge=False, header_style="bold")
    for name, folder in bundled().items():
        table.add_row(escape(name), loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"])
    for name in sorted(PUBLISHED.keys() - bundled()):
        table.add_row(name, "{} on the Hub, commit {}".format(*PUBLISHED[name]))
    if table.row_count:
        Console().print(table)
    else:
        print("This installation carries no checkpoints; give a folder or org/repo instead.")
