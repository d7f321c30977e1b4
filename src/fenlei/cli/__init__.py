"""The command line: one file a command, thin: parse, call, print. torch is never imported at start-up."""

from __future__ import annotations

import os
import sys

import typer

from fenlei import __version__
from fenlei.cli.calibrate import calibrate
from fenlei.cli.check import check
from fenlei.cli.convert import convert
from fenlei.cli.demo import demo
from fenlei.cli.doctor import doctor
from fenlei.cli.evaluate import evaluate
from fenlei.cli.models import app as models_app
from fenlei.cli.noise import noise
from fenlei.cli.predict import predict
from fenlei.cli.serve import serve
from fenlei.cli.train import train

app = typer.Typer(
    name="fenlei",
    help="fenlei (分类): turn an instruct LLM into a text classifier you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fenlei {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for _command in (demo, check, noise, train, evaluate, calibrate, predict, serve, convert, doctor):
    app.command()(_command)
app.add_typer(models_app, name="models")


def main() -> None:
    """Entry point.

    Exit codes: 0 done, 2 the user can mend it, 1 our bug, 130 Ctrl-C, 143 SIGTERM, 129 the terminal was closed.
    """
    from fenlei.errors import FenleiError

    try:
        app()
    except FenleiError as error:
        _say(str(error))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:  # e.g. `fenlei models list | head`
        sys.stderr.close()
        raise SystemExit(1) from None


def _say(text: str) -> None:
    try:
        print(f"fenlei: {text}", file=sys.stderr)
    except OSError:
        # the terminal is gone, or stderr goes to a full disk; what is stuck in the buffer would turn the exit code
        # into Python's own 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
