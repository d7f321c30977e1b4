"""``python -m fenlei``."""

from fenlei.cli import main

main()
