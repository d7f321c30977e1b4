"""`fenlei models`: which models are here, fetching one, and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, help="List, fetch and find models.")

_SPEC = "ORG/NAME, ms:ORG/NAME[@REV], hf:ORG/NAME[@REV], a folder, a .gguf file or a built-in name."
SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help=_SPEC)]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
# typer reads the annotation at run time, and Python 3.9-style Optional is what every version of it understands
CacheOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--cache-dir", help="Where models are kept (default: ~/.cache/fenlei)."),
]


@app.command("list")
def list_models(cache_dir: CacheOption = None) -> None:
    """Built-in models and what the cache holds."""
    from rich.console import Console
    from rich.table import Table

    from fenlei.modeling.sources.builtin import BUILTIN
    from fenlei.modeling.sources.cache import ModelCache, size_text

    cache = ModelCache(cache_dir)
    entries = {entry.path.name: entry for entry in cache.entries()}
    table = Table()
    for column in ("model", "licence", "download", "on disk", "folder"):
        # a shortened name or path could not be copied
        table.add_column(column, no_wrap=column in ("download", "on disk"), overflow="fold")
    for name, model in BUILTIN.items():
        entry = entries.pop(name, None)
        here = (size_text(entry.nbytes), str(entry.path)) if entry else ("-", "not fetched")
        table.add_row(name, model.licence, size_text(model.gguf_bytes), *here)
    for entry in entries.values():
        origin = str(entry.manifest.get("spec", entry.path.name))
        licence = str(entry.manifest.get("licence", "?"))
        table.add_row(origin, licence, "-", size_text(entry.nbytes), str(entry.path))
    Console().print(table)


@app.command("pull")
def pull(spec: SpecArgument, offline: OfflineOption = False, cache_dir: CacheOption = None) -> None:
    """Fetches, checks and converts a model, once; an interrupted pull goes on where it stopped."""
    from fenlei.modeling.sources import resolve

    folder = resolve(spec, cache_dir=cache_dir, offline=offline)
    revision = f" at {folder.revision}" if folder.revision else ""
    typer.echo(f"{spec}{revision} ({folder.source}) is ready: {folder.path}")


@app.command("path")
def path(spec: SpecArgument, offline: OfflineOption = False, cache_dir: CacheOption = None) -> None:
    """Prints a model's folder and nothing else, for use in $(...); fetches the model if need be."""
    from fenlei.modeling.sources import resolve

    typer.echo(str(resolve(spec, cache_dir=cache_dir, offline=offline).path))
