"""The exit codes of the command; 0 is done. Plain numbers, as `__main__` loads them before it hears Ctrl-C."""

FAILED = 1
MISUSED = 2
# By a gate or an objective, or while another release is tried.
REFUSED = 3
INTERRUPTED = 130
