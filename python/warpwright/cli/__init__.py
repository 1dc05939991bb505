"""The `warpwright` command.

One module a command; `COMMANDS` is their list and the order of `warpwright --help`. Each module has
`register(app: typer.Typer)`, which adds its command (or a group of commands) to the application.

Commands print results on stdout and progress on stderr, raise for whatever stops them (main turns that into one line)
and end with `raise typer.Exit(1)` when they ran but something failed.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

import typer

from warpwright._version import __version__

COMMANDS = ("info", "check", "bench", "tune", "demo")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"warpwright {__version__}")
        raise typer.Exit


def _options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show a traceback when a command fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hand-written CUDA C++ and Triton kernels for PyTorch: what runs here, is it right, and how fast is it."""


def build_app() -> typer.Typer:
    """The application with every command."""
    app = typer.Typer(
        name="warpwright",
        callback=_options,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        importlib.import_module(f"{__name__}.{name}").register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; always ends in SystemExit: 0 done, 1 failed, 2 a wrong command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A global option that works on either side of the command's name.
    verbose = "--verbose" in arguments
    arguments = [a for a in arguments if a != "--verbose"]
    try:
        build_app()(arguments, prog_name="warpwright")
    except BrokenPipeError:  # `warpwright ... | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if verbose:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, RuntimeError):  # Ours say what they are; others are clearer with their type.
            message = f"{type(error).__name__}: {message}"
        typer.echo(f"{message if message.startswith('warpwright: ') else f'warpwright: {message}'}", err=True)
        sys.exit(1)
