-- The layout of a store becomes that of today. No key moves: those of layout 1 are as they would be, without extras and records.
--
-- KEYS: manifest, moves
-- ARGV: manifest as it was, as it is to be
-- Returns OK, or CHANGED (another manifest), with nothing written.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'CHANGED' end
redis.call('HDEL', KEYS[2], 'manifest') -- first: a full memory lets it pass, and what follows with it
redis.call('SET', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], 'manifest', ARGV[2])
return 'OK'
