"""The command line: flags, process-wide settings, exit codes; a module per group of commands."""
