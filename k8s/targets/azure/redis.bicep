// Azure Managed Redis without clustering: releases change by scripts over several keys. It has one user with all rights;
// `az redisenterprise database list-keys` prints the key: keep it in a secret, for HOTPLATE_REDIS_PASSWORD_FILE.
param name string
param location string

@description('docs/sizing.md: `hotplate plan` says how much memory the lists take, three releases at a time.')
param size string = 'Balanced_B1'

@description('Whether it can be reached by private endpoints alone.')
param private bool = false

resource redis 'Microsoft.Cache/redisEnterprise@2025-07-01' = {
  name: name
  location: location
  sku: {
    name: size
  }
  properties: {
    minimumTlsVersion: '1.2'
    highAvailability: 'Enabled'
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
  }
}

resource database 'Microsoft.Cache/redisEnterprise/databases@2025-07-01' = {
  parent: redis
  name: 'default'
  properties: {
    clientProtocol: 'Encrypted'
    port: 10000
    clusteringPolicy: 'NoCluster'
    // An evicted list would be missing for its user; without room, a publish must fail instead.
    evictionPolicy: 'NoEviction'
    accessKeysAuthentication: 'Enabled'
    // If both nodes fail, at most one second of changes is lost.
    persistence: {
      aofEnabled: true
      aofFrequency: '1s'
    }
  }
}

output url string = 'rediss://${redis.properties.hostName}:10000/0'
