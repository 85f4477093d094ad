"""`python -m hotplate`: the same as the command `hotplate`."""

from hotplate.cli.main import main

main()
