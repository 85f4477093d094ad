"""The planner: from users, requests and sizes to RU/s, partitions, pods, memory and money."""
