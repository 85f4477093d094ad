"""The input of a training: files, their columns, the interactions in them, and the matrix that they make."""
