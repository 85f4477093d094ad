"""The Cosmos DB store: a container a release, an item a row, every request unit counted."""
