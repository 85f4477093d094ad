"""Which release a process serves, live and as a canary, and what watches over it."""
