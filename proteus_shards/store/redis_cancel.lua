-- Give up a move that is under way or was left half done, so that it can never be completed.
--
-- KEYS: moves
-- ARGV: number of the move, its entry, its entry as rubbish
-- Returns OK, or CHANGED: it was completed, or is given up already.

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 'CHANGED' end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 'OK'
