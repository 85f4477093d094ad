"""What a release takes in a Redis, for the store's own checks and for the planner, which works without redis-py."""

# Of each release; a row is in one of them, and all rows of a bucket are in one slot of a cluster.
BUCKETS = 256

# Overhead of a row, its name before the key, and the allocator: within -10 and +13 % of `used_memory` (Redis 7).
ROW_BYTES = 80
HEAD_BYTES = len("hotplate:{7f3a0c5e9d12.255}:")
ALLOCATED = 1.08
