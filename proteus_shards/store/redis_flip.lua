-- The commit point of a move: from here on the new generation counts, and the old one is rubbish.
--
-- KEYS: manifest, moves, hosts of a cluster of servers
-- ARGV: manifest as it was ('' for none), as it is to be, number of the move, its entry, number of the old generation ('' for none), its entry as rubbish
-- Returns OK; CHANGED (another manifest), CANCELLED (the move was given up by another) or SHARED (a host has joined), all three with nothing written.

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 'CHANGED' end
if redis.call('HGET', KEYS[2], ARGV[3]) ~= ARGV[4] then return 'CANCELLED' end
if ARGV[1] ~= '' and redis.call('HLEN', KEYS[3]) > 0 then return 'SHARED' end
redis.call('HDEL', KEYS[2], ARGV[3]) -- first: a full memory lets it pass, and what follows with it
redis.call('SET', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], 'manifest', ARGV[2])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[2], ARGV[5], ARGV[6]) end
return 'OK'
