"""``python -m skyward.cli``: the same as the command ``skyward``."""

from skyward.cli import main

main()
