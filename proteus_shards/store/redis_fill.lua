-- Some rows, marks, states, extras or records for a shard that a move fills. May be repeated.
--
-- KEYS: lease, hash
-- ARGV: token; field, value, field, value, … in MessagePack
-- Returns OK, or FENCED.

local WIDTH = 2000

if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 'FENCED' end
local pairs = cmsgpack.unpack(ARGV[2])
for first = 1, #pairs, WIDTH do
  redis.call('HSET', KEYS[2], unpack(pairs, first, math.min(first + WIDTH - 1, #pairs)))
end
return 'OK'
