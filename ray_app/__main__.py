"""`python -m ray_app` is the `ugt` command."""

from ray_app.cli import main

main()
