"""`python -m scheduler.cli` is `infersched`."""

from scheduler.cli.main import main

main()
