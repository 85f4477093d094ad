"""Events that a service collected: written, shipped and counted."""
