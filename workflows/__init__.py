"""Definitions, the runner, one file per stage, and the command line."""
