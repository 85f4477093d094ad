"""The command, one verb a module; each imports its room when it is called."""
