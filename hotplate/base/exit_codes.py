"""The exit codes of the command; 0 is done. Plain numbers, as `__main__` loads them before it hears Ctrl-C."""

FAILED = 1
MISUSED = 2
# By a gate, an objective or a running canary.
REFUSED = 3
INTERRUPTED = 130
