// The Azure resources for hotplate: a cluster whose pods have identities, a store, and logs. It uses Entra ID instead of
// keys wherever that is possible.
//   az deployment group create --resource-group shop --template-file main.bicep --parameters administrators=GROUP_ID
targetScope = 'resourceGroup'

@description('Begins the name of everything; small letters, digits and hyphens.')
@minLength(3)
@maxLength(20)
param name string = 'shop'

param location string = resourceGroup().location

@description('An account of Azure Cosmos DB for NoSQL, with roles for the two identities.')
param withCosmos bool = true

@description('An Azure Managed Redis.')
param withRedis bool = false

@description('Size of the nodes that run pods; a pod takes half a core to two.')
param nodeSize string = 'Standard_D4ds_v5'

@description('Resource id of a subnet for private endpoints of the stores, which then cannot be reached from elsewhere.')
param subnet string = ''

@description('The group of Entra ID whose members administer the cluster.')
param administrators string

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: '${name}-logs'
  location: location
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: 30
  }
}

// The service and the publisher: identities of the service accounts of these names in k8s/, with separate rights.
resource serve 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-serve'
  location: location
}

resource publish 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-publish'
  location: location
}

resource cluster 'Microsoft.ContainerService/managedClusters@2025-05-01' = {
  name: name
  location: location
  identity: {
    type: 'SystemAssigned'
  }
  sku: {
    name: 'Base'
    tier: 'Standard'
  }
  properties: {
    dnsPrefix: name
    disableLocalAccounts: true
    aadProfile: {
      managed: true
      enableAzureRBAC: true
      adminGroupObjectIDs: [
        administrators
      ]
    }
    oidcIssuerProfile: {
      enabled: true
    }
    securityProfile: {
      workloadIdentity: {
        enabled: true
      }
    }
    autoUpgradeProfile: {
      upgradeChannel: 'patch'
      nodeOSUpgradeChannel: 'NodeImage'
    }
    // Without a policy engine, network policies have no effect.
    networkProfile: {
      networkPlugin: 'azure'
      networkPluginMode: 'overlay'
      networkDataplane: 'cilium'
      networkPolicy: 'cilium'
      loadBalancerSku: 'standard'
    }
    addonProfiles: {
      omsagent: {
        enabled: true
        config: {
          logAnalyticsWorkspaceResourceID: logs.id
          useAADAuth: 'true'
        }
      }
    }
    agentPoolProfiles: [
      {
        name: 'system'
        mode: 'System'
        vmSize: nodeSize
        osType: 'Linux'
        osSKU: 'AzureLinux'
        availabilityZones: [
          '1'
          '2'
          '3'
        ]
        enableAutoScaling: true
        count: 2
        minCount: 2
        maxCount: 6
      }
    ]
  }
}

resource serveFederation 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = {
  parent: serve
  name: 'hotplate'
  properties: {
    issuer: cluster.properties.oidcIssuerProfile.issuerURL
    subject: 'system:serviceaccount:hotplate:hotplate'
    audiences: [
      'api://AzureADTokenExchange'
    ]
  }
}

resource publishFederation 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = {
  parent: publish
  name: 'hotplate-publisher'
  properties: {
    issuer: cluster.properties.oidcIssuerProfile.issuerURL
    subject: 'system:serviceaccount:hotplate:hotplate-publisher'
    audiences: [
      'api://AzureADTokenExchange'
    ]
  }
}

module cosmos 'cosmos.bicep' = if (withCosmos) {
  name: 'cosmos'
  params: {
    account: '${name}-recommendations'
    location: location
    logs: logs.id
    reader: serve.properties.principalId
    publisher: publish.properties.principalId
    private: !empty(subnet)
  }
}

module cosmosEndpoint 'endpoint.bicep' = if (withCosmos && !empty(subnet)) {
  name: 'cosmosEndpoint'
  params: {
    name: '${name}-cosmos'
    location: location
    subnet: subnet
    store: resourceId('Microsoft.DocumentDB/databaseAccounts', '${name}-recommendations')
    service: 'Sql'
    zone: 'privatelink.documents.azure.com'
  }
  dependsOn: [
    cosmos
  ]
}

module redis 'redis.bicep' = if (withRedis) {
  name: 'redis'
  params: {
    name: '${name}-recommendations'
    location: location
    private: !empty(subnet)
  }
}

module redisEndpoint 'endpoint.bicep' = if (withRedis && !empty(subnet)) {
  name: 'redisEndpoint'
  params: {
    name: '${name}-redis'
    location: location
    subnet: subnet
    store: resourceId('Microsoft.Cache/redisEnterprise', '${name}-recommendations')
    service: 'redisEnterprise'
    zone: 'privatelink.redis.azure.net'
  }
  dependsOn: [
    redis
  ]
}

// For the annotations `azure.workload.identity/client-id` in k8s/overlays/cosmos.
output serveClientId string = serve.properties.clientId
output publishClientId string = publish.properties.clientId
