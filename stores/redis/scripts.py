"""The two steps that must be one on the server. Rows are not written by a script: see `stores.redis.writer`.

Each deletes before it sets. A script that has written is not stopped by `maxmemory`, and deleting counts as writing; a
full server must still be able to give a draft up, or nothing would ever free its memory.
"""

SWAP = """
local stored = redis.call('GET', KEYS[1])
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', KEYS[2], ARGV[2])
return 1
"""
"""Catalogue and channel; version expected in three parts, and the new record. A user who may not publish may swap."""

SEAL = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], 'sealed')
return 1
"""
