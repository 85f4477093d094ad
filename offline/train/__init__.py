"""What is learned from the matrix: factors by ALS, and what most users have."""

import os

# Threads of the solver would spin while they wait, on cores that others need; OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
