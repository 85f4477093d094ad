"""The embedded store, `file://`: one LMDB file a release in a folder, shared by all processes of one machine."""
