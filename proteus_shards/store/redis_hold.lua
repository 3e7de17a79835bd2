-- A shard goes to another host, or an operator's wish is written down.
--
-- KEYS: lease
-- ARGV: hand, turn that it must have, the next one, host ('' for nobody); or want, host ('' for none)
-- Returns OK; CHANGED (another turn by now) or GONE (no such shard), both with nothing written.
--
-- Absent is as good as empty here, and turn 0: no lease of a store that never had hosts is written anew.

local lease = KEYS[1]
local held = redis.call('HMGET', lease, 'epoch', 'turn', 'wanted')
if not held[1] then return 'GONE' end
if ARGV[1] == 'hand' and (held[2] or '0') ~= ARGV[2] then return 'CHANGED' end

if ARGV[1] ~= 'hand' or held[3] ~= ARGV[4] then -- a wish that is fulfilled stays, as a pin
  redis.call('HDEL', lease, 'wanted') -- first: a full memory lets it pass, and what follows with it
else
  redis.call('HDEL', lease, '') -- there is none; for a full memory, as above
end
if ARGV[1] == 'hand' then
  redis.call('HSET', lease, 'turn', ARGV[3], 'host', ARGV[4])
elseif ARGV[2] ~= '' then
  redis.call('HSET', lease, 'wanted', ARGV[2])
end
return 'OK'
