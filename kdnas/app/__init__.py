"""The commands: preflight, run, command line, sweeper, launchers."""
