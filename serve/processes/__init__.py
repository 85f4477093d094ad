"""The processes of a service: a parent, its workers, and the admin process."""
