-- No owner of a shard writes any more, nor does another come, while the move lives that is named here.
--
-- KEYS: lease
-- ARGV: number of the move
-- Returns OK and the epoch, or GONE.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return { 'GONE' } end
redis.call('HDEL', KEYS[1], 'token', 'owner') -- first: a full memory lets it pass, and what follows with it
redis.call('HSET', KEYS[1], 'moving', ARGV[1], 'owner', '')
return { 'OK', epoch }
