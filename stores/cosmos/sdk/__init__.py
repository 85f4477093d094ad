"""The driver through azure-cosmos: the unmodified SDK, one attempt a call."""
