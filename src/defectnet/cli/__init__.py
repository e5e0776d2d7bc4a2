"""The command line. A command is one function in `COMMANDS`; it imports what it needs itself, so that help is fast.

Its keyword-only arguments are options, others are given without a name.

Training (``fit``, ``validate``, ``test``) has Lightning's own command line and is handed over before any parsing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from defectnet.cli.app import app
from defectnet.cli.data import data_measure, data_show, data_stats, data_verify, simulate
from defectnet.cli.host import host_list, host_make, host_push, host_responses, host_show, host_spectra
from defectnet.cli.identify import identify_pair
from defectnet.cli.plan import plan_measurement
from defectnet.cli.publish import checkpoints, data_push, push
from defectnet.cli.training import benchmark, export, finetune, fit, test, validate
from defectnet.errors import ConfigError, DefectNetError, LabError

__all__ = ["COMMANDS", "EXIT_ERROR", "TRAINING", "main"]

TRAINING: dict[str, Callable[..., None]] = {"fit": fit, "validate": validate, "test": test}
"""Commands whose words go to Lightning's own command line as they are."""

EXIT_ERROR = 2

_NO_VALUE = (
    "null",
    "Null",
    "NULL",
    "~",
)  # what YAML reads as no value, and would pass for an option that was not given

EXTRAS = {
    **dict.fromkeys(("ase", "numba", "scipy", "spglib", "threadpoolctl", "vesin"), "sim"),
    **dict.fromkeys(("chemotools", "lightgbm", "sklearn"), "benchmark"),
    **dict.fromkeys(("equinox", "jax", "jraph"), "reference"),
    "h5py": "hdf5",
    "matplotlib": "plot",
    "NCrystal": "physics",
    "parsl": "parsl",
    "pyarrow": "data",
    **dict.fromkeys(("python_multipart", "starlette", "uvicorn"), "app"),
}
"""Package that a command may lack -> the extra that installs it."""

_DESCRIPTION = "Which dopants are in a crystal, and how much: from its phonon density of states."

COMMANDS: dict[str, Callable[..., Any] | dict[str, Any]] = {
    "identify": identify_pair,  # named unlike `defectnet.identify`, as is `plan` below
    "plan": plan_measurement,  # named unlike `defectnet.plan`, which the parser would load, with torch, to compare
    "host": {
        "_help": "Host packs: a crystal's force constants and how dopants change them; spectra of any composition.",
        "make": host_make,
        "show": host_show,
        "spectra": host_spectra,
        "responses": host_responses,
        "list": host_list,
        "push": host_push,
    },
    "simulate": simulate,
    "data": {
        "_help": "Data sets: their numbers, one row, whether rows come out again; to measure or publish one.",
        "stats": data_stats,
        "show": data_show,
        "verify": data_verify,
        "measure": data_measure,
        "push": data_push,
    },
    **TRAINING,
    "finetune": finetune,
    "benchmark": benchmark,
    "export": export,
    "push": push,
    "checkpoints": checkpoints,
    "app": app,
}


def _parse_and_run(arguments: list[str]) -> None:
    if arguments and arguments[0] in TRAINING:
        TRAINING[arguments[0]](*arguments[1:])
        return
    if arguments == ["--version"]:
        from defectnet import __version__

        print(f"defectnet {__version__}")
        return
    for option, value in zip(["", *arguments], arguments, strict=False):
        name, equals, given = value.partition("=")
        if (value in _NO_VALUE and option.startswith("--")) or (equals and given in _NO_VALUE):
            raise ConfigError(f"{name if equals else option} has no value", fix="Leave the option out, or give it one")
    from jsonargparse import ActionYesNo, ArgumentParser, auto_cli

    class Parser(ArgumentParser):
        """Parser whose switches take no value (``--json``, not ``--json true``) and whose lists are repeated."""

        def add_argument(self, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("type") is bool and kwargs.get("default") is False:
                del kwargs["type"]
                kwargs["action"] = "store_true"
            if kwargs.get("type") is bool and kwargs.get("default") is True:  # --open, --no-open
                del kwargs["type"]
                kwargs["action"] = ActionYesNo(no_prefix="no-")
            if str(args[-1]).endswith("+"):  # jsonargparse's spelling of an option that may be repeated
                args, kwargs["action"] = args[:-1], "append"
            args = tuple(a.replace("_", "-") if str(a).startswith("--") else a for a in args)  # as users expect
            if args == ("--from-",):  # a word of Python's own, so that the function cannot have it as a name
                args, kwargs["dest"] = ("--from",), "from_"
            return super().add_argument(*args, **kwargs)

    # dict(): jsonargparse types its argument as a dict of more than functions.
    auto_cli(
        dict(COMMANDS),
        args=arguments,
        prog="defectnet",
        description=_DESCRIPTION,
        parser_class=Parser,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; anything wrong with the input is one line on stderr and exit code 2.

    Args:
        arguments: Words of the command line; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _parse_and_run(words)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]  # what is missing may be a module of it
        if package not in EXTRAS:
            raise
        text = f"this command needs {package}. Install it: pip install 'defectnet[{EXTRAS[package]}]'."
        print(f"defectnet: {text}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None
    except (DefectNetError, OSError) as error:
        # One line, but for a table of lab spectra, whose faults are listed one below the other.
        text = str(error) if isinstance(error, LabError) else " ".join(str(error).split())
        print(f"defectnet: {text}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
