"""The operators' page at `/console` of the admin listener, and what it reads."""
