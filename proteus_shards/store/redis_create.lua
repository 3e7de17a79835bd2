-- An empty shard that a move may fill.
--
-- KEYS: lease, rows, marks, states, extras, records
-- ARGV: token, epoch, layout, turn of the holding
-- Returns OK, or PRESENT where something of the name is there.

if redis.call('EXISTS', unpack(KEYS)) > 0 then return 'PRESENT' end
redis.call('HSET', KEYS[1], 'layout', ARGV[3], 'owner', '', 'epoch', ARGV[2], 'batch', '0', 'token', ARGV[1], 'turn', ARGV[4])
return 'OK'
