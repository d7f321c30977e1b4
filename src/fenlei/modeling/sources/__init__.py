"""Where weights come from: every model spec becomes a folder with safetensors on this disk."""

from __future__ import annotations

from fenlei.modeling.sources.folder import needs_remote_code
from fenlei.modeling.sources.resolve import ModelFolder, resolve

__all__ = ["ModelFolder", "needs_remote_code", "resolve"]
