"""A local emulation of Azure Cosmos DB for NoSQL that counts request units and throttles."""
