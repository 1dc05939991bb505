"""`python -m warpwright.cli`: the command where its script is not on PATH."""

from warpwright.cli import main

main()
