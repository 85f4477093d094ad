"""Routes, parameters and answers of the service."""
