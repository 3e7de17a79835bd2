-- One batch, all of it or nothing. Redis does not roll a script back, so everything is looked at before the first write.
--
-- KEYS: lease, rows, marks, states, extras, records of one shard
-- ARGV: token, number of the batch before, number of this one; then in MessagePack: fields to delete, and field, value, field, value, …
--       of marks, states and rows; and where there are any of these, of extras and of records, and the fields of records to remove, '' for none
-- Returns OK; FENCED (another token), LOST (another batch came last), ABSENT, PRESENT (not the rows that the caller knows), all three with nothing
-- written; or TORN and why: half of it is written.

local WIDTH = 2000 -- values in one command: Lua's stack holds 8,000
local SMALL = 1000 -- bytes of extras that are taken as a mark is, even when the memory is full

local lease, rows, marks, states, extras, records = unpack(KEYS)
local held = redis.call('HMGET', lease, 'token', 'batch')
if held[1] ~= ARGV[1] then return 'FENCED' end
if held[2] ~= ARGV[2] then return 'LOST' end

local gone = cmsgpack.unpack(ARGV[4])
local marked = cmsgpack.unpack(ARGV[5])
local stated = cmsgpack.unpack(ARGV[6])
local added = cmsgpack.unpack(ARGV[7])
local extended, recorded, dropped = {}, {}, {}
if ARGV[8] then
  if ARGV[8] ~= '' then extended = cmsgpack.unpack(ARGV[8]) end
  if ARGV[9] ~= '' then recorded = cmsgpack.unpack(ARGV[9]) end
  if ARGV[10] ~= '' then dropped = cmsgpack.unpack(ARGV[10]) end
end

redis.call('HLEN', rows) -- each of these is an error where another type of key has the name
redis.call('HLEN', marks)
redis.call('HLEN', states)
local with_extras = #gone + #extended > 0 and redis.call('HLEN', extras) > 0
if #recorded + #dropped > 0 then redis.call('HLEN', records) end

local bytes = 0 -- that the batch adds to what is stored, marks aside
for _, field in ipairs(gone) do
  local length = redis.call('HSTRLEN', rows, field)
  if length == 0 then return 'ABSENT' end
  bytes = bytes - length
end
for i = 1, #marked, 2 do
  if redis.call('HEXISTS', rows, marked[i]) == 0 then return 'ABSENT' end
end
for i = 2, #stated, 2 do
  bytes = bytes + #stated[i]
end
for i = 1, #extended, 2 do
  if #extended[i + 1] > SMALL then bytes = bytes + #extended[i + 1] - redis.call('HSTRLEN', extras, extended[i]) end
end
for i = 1, #recorded, 2 do
  bytes = bytes + #recorded[i] + #recorded[i + 1] - redis.call('HSTRLEN', records, recorded[i])
end
for _, field in ipairs(dropped) do
  bytes = bytes - redis.call('HSTRLEN', records, field)
end
for first = 1, #added, WIDTH do
  local fields = {}
  for i = first, math.min(first + WIDTH - 1, #added), 2 do
    fields[#fields + 1] = added[i]
    bytes = bytes + #added[i + 1]
  end
  for _, value in ipairs(redis.call('HMGET', rows, unpack(fields))) do
    if value then return 'PRESENT' end
  end
end

-- The first write is the one that a full memory refuses, or passes, and all after it pass.
if bytes > 0 then
  redis.call('HSET', lease, 'batch', ARGV[3])
else
  redis.call('HDEL', lease, 'none')
end

local function put(hash, pairs)
  for first = 1, #pairs, WIDTH do
    redis.call('HSET', hash, unpack(pairs, first, math.min(first + WIDTH - 1, #pairs)))
  end
end

local whole, fault = pcall(function()
  for first = 1, #gone, WIDTH do
    local last = math.min(first + WIDTH - 1, #gone)
    redis.call('HDEL', rows, unpack(gone, first, last))
    redis.call('HDEL', marks, unpack(gone, first, last))
    redis.call('HDEL', states, unpack(gone, first, last))
    if with_extras then redis.call('HDEL', extras, unpack(gone, first, last)) end
  end
  put(marks, marked)
  put(states, stated)
  put(extras, extended)
  put(rows, added)
  for first = 1, #dropped, WIDTH do
    redis.call('HDEL', records, unpack(dropped, first, math.min(first + WIDTH - 1, #dropped)))
  end
  put(records, recorded)
  redis.call('HSET', lease, 'batch', ARGV[3])
end)
if not whole then
  return 'TORN ' .. (type(fault) == 'table' and fault.err or tostring(fault))
end
return 'OK'
