"""What a Redis server does in one step, in Lua, where it depends on what is there."""

from __future__ import annotations

# KEYS: count of users; the user's record, events, answers; users with events, with answers; who was forgotten; the
# answers that the user acted on; names of tallies. ARGV: user, time, what stands before names of tallies, twice.
FORGET = """
redis.call('DECRBY', KEYS[1], redis.call('DEL', KEYS[2]))
redis.call('DEL', KEYS[3], KEYS[4])
redis.call('SREM', KEYS[5], ARGV[1])
redis.call('SREM', KEYS[6], ARGV[1])
redis.call('HSET', KEYS[7], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[8])
for _, name in ipairs(redis.call('SMEMBERS', KEYS[9])) do
    redis.call('HDEL', ARGV[3] .. name, ARGV[1])
    redis.call('HDEL', ARGV[4] .. name, ARGV[1])
end
"""

# KEYS: who was forgotten; the user's answers; users with answers; the answers that the user acted on; names of tallies.
# ARGV: user, id of the answer, its record, its time; name of its tally, '' for none; as before names of tallies, twice.
SHOW = """
local since = redis.call('HGET', KEYS[1], ARGV[1])
if since and tonumber(ARGV[4]) <= tonumber(since) then return end
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 0 then return end
redis.call('SADD', KEYS[3], ARGV[1])
if ARGV[5] == '' then return end
redis.call('SADD', KEYS[5], ARGV[5])
redis.call('HINCRBY', ARGV[6] .. ARGV[5], ARGV[1], 1)
if redis.call('HEXISTS', KEYS[4], ARGV[2]) == 1 then redis.call('HINCRBY', ARGV[7] .. ARGV[5], ARGV[1], 1) end
"""
