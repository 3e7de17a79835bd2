-- No owner of a shard writes any more, nor does another come, while the move lives that is named here.
--
-- KEYS: lease
-- ARGV: number of the move
-- Returns OK, the epoch and the turn, or GONE.

local held = redis.call('HMGET', KEYS[1], 'epoch', 'turn')
if not held[1] then return { 'GONE' } end
redis.call('HDEL', KEYS[1], 'token', 'owner') -- first: a full memory lets it pass, and what follows with it
redis.call('HSET', KEYS[1], 'moving', ARGV[1], 'owner', '')
return { 'OK', held[1], held[2] or '0' }
