"""The command line `vprm-search`: one file a command, and what they share."""

from vprm_search.cli.app import main

__all__ = ["main"]
