"""``python -m skyward.cli``: the same as the ``skyward`` command."""

from skyward.cli import main

main()
