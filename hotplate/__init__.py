"""hotplate keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast."""
