// The account and its database, accessible by tokens only: one identity reads, the other publishes. docs/cosmos.md explains
// the publisher's two roles. Each publish creates its containers, so they are not defined here.
param account string
param location string

@description('Resource id of the Log Analytics workspace.')
param logs string

@description('Object ids of the identities that serve and that publish.')
param reader string
param publisher string

@description('The most RU/s that the account may ever have. --max-ru limits a publish.')
param limit int = 20000

@description('Whether it can be reached by private endpoints alone.')
param private bool = false

resource cosmos 'Microsoft.DocumentDB/databaseAccounts@2024-11-15' = {
  name: account
  location: location
  kind: 'GlobalDocumentDB'
  properties: {
    databaseAccountOfferType: 'Standard'
    disableLocalAuth: true
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    minimalTlsVersion: 'Tls12'
    consistencyPolicy: {
      defaultConsistencyLevel: 'Session'
    }
    locations: [
      {
        locationName: location
        failoverPriority: 0
        isZoneRedundant: true
      }
    ]
    capacity: {
      totalThroughputLimit: limit
    }
    backupPolicy: {
      type: 'Continuous'
      continuousModeProperties: {
        tier: 'Continuous7Days'
      }
    }
  }
}

resource database 'Microsoft.DocumentDB/databaseAccounts/sqlDatabases@2024-11-15' = {
  parent: cosmos
  name: 'recommendations'
  properties: {
    resource: {
      id: 'recommendations'
    }
  }
}

// Cosmos DB Built-in Data Reader, and Data Contributor.
resource reads 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2024-11-15' = {
  parent: cosmos
  name: guid(cosmos.id, reader, 'reader')
  properties: {
    principalId: reader
    roleDefinitionId: '${cosmos.id}/sqlRoleDefinitions/00000000-0000-0000-0000-000000000001'
    scope: cosmos.id
  }
}

resource writes 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2024-11-15' = {
  parent: cosmos
  name: guid(cosmos.id, publisher, 'contributor')
  properties: {
    principalId: publisher
    roleDefinitionId: '${cosmos.id}/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002'
    scope: cosmos.id
  }
}

// Cosmos DB Operator: creates, scales and deletes containers, without access to keys or data.
resource operates 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(cosmos.id, publisher, 'operator')
  scope: cosmos
  properties: {
    principalId: publisher
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '230815da-be43-4aae-9cb4-875f7bd000aa')
  }
}

resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: cosmos
  properties: {
    workspaceId: logs
    logs: [
      {
        category: 'ControlPlaneRequests'
        enabled: true
      }
      {
        category: 'PartitionKeyRUConsumption'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'Requests'
        enabled: true
      }
    ]
  }
}

output endpoint string = cosmos.properties.documentEndpoint
