"""`warpwright info`: what is installed, what runs here, and why something does not."""

from __future__ import annotations

import typer

import warpwright
from warpwright.cli._output import JsonOption, print_json

EPILOG = "Examples:\n\n  warpwright info\n\n  warpwright info --json"


def info(json: JsonOption = False) -> None:
    """Show versions, GPUs, libraries and backends; for what cannot run, why not."""
    found = warpwright.info()
    print_json(found.as_dict()) if json else typer.echo(str(found))


def register(app: typer.Typer) -> None:
    app.command("info", epilog=EPILOG)(info)
