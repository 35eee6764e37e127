"""`python -m dcclctl`."""

from dcclctl.cli.main import main

main()
