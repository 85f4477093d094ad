"""Engines: their parameters, fits and scores."""

import os

# Idle solver threads would spin. OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
