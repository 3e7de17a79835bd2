-- A new owner of a shard's rows, under a new epoch.
--
-- KEYS: lease
-- ARGV: owner; who must own it now ('' for anybody); an epoch that was seen (the new one is above it); a move that is known to be dead; layout;
--       host and turn of the claim that it is taken for ('' for none)
-- Returns OK, epoch and number of the last batch; or GONE (no such shard), MOVING and the move's number, TAKEN (another owner came), CLAIMED (by
-- another host, or in another turn).
--
-- A lease has the field 'layout'. One of layout 1 has 'shards' instead, and without that it is GONE to whoever knows layout 1 only: once an owner of
-- today has come, none of that version can, not even one that read the manifest before it was changed.

local lease = KEYS[1]
local held = redis.call('HMGET', lease, 'layout', 'owner', 'epoch', 'batch', 'moving', 'shards', 'host', 'turn')
if not held[1] and not held[6] then return { 'GONE' } end
if held[5] and held[5] ~= ARGV[4] then return { 'MOVING', held[5] } end
if ARGV[2] ~= '' and held[2] ~= ARGV[2] then return { 'TAKEN' } end
if ARGV[6] ~= '' and (held[7] ~= ARGV[6] or held[8] ~= ARGV[7]) then return { 'CLAIMED' } end

local epoch = string.format('%.0f', math.max(tonumber(held[3]), tonumber(ARGV[3])) + 1)
redis.call('HDEL', lease, 'moving', 'shards') -- first: a full memory lets it pass, and what follows with it
redis.call('HSET', lease, 'layout', ARGV[5], 'owner', ARGV[1], 'epoch', epoch, 'token', ARGV[1] .. ':' .. epoch)
return { 'OK', epoch, held[4] }
