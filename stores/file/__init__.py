"""Store in a folder of LMDB files."""
