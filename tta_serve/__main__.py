"""`python -m tta_serve` is `tta`."""

from tta_serve.cli.main import main

main()
