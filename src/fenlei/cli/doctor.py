"""``fenlei doctor``."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Print versions, devices and memory: what to paste into a bug report."""
    import os
    import platform
    import shutil
    import sys
    from pathlib import Path

    from fenlei.artifact import library_versions

    lines = [f"python        {sys.version.split()[0]} on {platform.platform()}"]
    lines += [f"{name:<13} {found}" for name, found in library_versions().items()]
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            lines.append(f"cuda:{i}        {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        lines.append("cuda          none")
    lines.append(f"cpu           {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    if hasattr(os, "sysconf"):
        lines.append(f"memory        {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    cache = Path.home() / ".cache" / "fenlei"
    lines.append(f"cache         {cache}, {shutil.disk_usage(Path.home()).free / 2**30:.0f} GiB free")
    typer.echo("\n".join(lines))
