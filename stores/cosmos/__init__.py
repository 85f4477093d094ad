"""Store in Azure Cosmos DB."""
