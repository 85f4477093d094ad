"""Engines, and the search for the best one."""

import os

# Idle solver threads would spin. OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
