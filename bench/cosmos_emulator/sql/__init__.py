"""The small part of Cosmos DB's SQL that SDKs send by themselves, and that simple reads need."""
