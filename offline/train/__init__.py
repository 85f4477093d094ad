"""What is learned from the matrix: factors by ALS, and what most users have."""
