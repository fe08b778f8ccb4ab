"""`python -m workflows` is `tesserec`."""

from workflows.cli import main

main()
