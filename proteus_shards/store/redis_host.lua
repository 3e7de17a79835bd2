-- A host joins, beats, is told to drain or not to, or leaves.
--
-- KEYS: hosts, draining
-- ARGV: join, beat, drain, stay or leave; address; boot that the host must have ('' for any); of a join and a beat, what is kept of it; of a join,
--       whether it drains ('' for no)
-- Returns OK, or ABSENT (no such host, or another boot), with nothing written. Where it cannot be read, a host has no boot.

local hosts, draining = KEYS[1], KEYS[2]
local what, address, boot, kept, drains = unpack(ARGV)
local stored = redis.call('HGET', hosts, address)
redis.call('HLEN', draining) -- an error where another type of key has the name
if what ~= 'join' then
  if not stored then return 'ABSENT' end
  if boot ~= '' then
    local whole, known = pcall(cmsgpack.unpack, stored)
    if not whole or type(known) ~= 'table' or known[1] ~= boot then return 'ABSENT' end
  end
end

redis.call('HDEL', hosts, '') -- first: a full memory lets it pass, and what follows with it
if what == 'drain' or (what == 'join' and drains ~= '') then
  redis.call('HSET', draining, address, '1')
elseif what ~= 'beat' then
  redis.call('HDEL', draining, address)
end
if what == 'leave' then
  redis.call('HDEL', hosts, address)
elseif kept then
  redis.call('HSET', hosts, address, kept)
end
return 'OK'
