-- Ends the claim on work that is done, and keeps the record of it. All who wait are told: there is nothing to wait for.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock  5 record
-- ARGV  1 claim id  2 ms to keep the record  3 what it says
--
-- Returns  1  the record is kept; asked again, it finds the claim's own
--          0  the claim has ended, and whatever is kept is another's
--
--   record   string  "1 <claim id> <what it says>"                  in the slot of the lock, as its other keys

local ours = '1 ' .. ARGV[1] .. ' '
if string.sub(redis.call('GET', KEYS[1]) or '', 1, #ours) ~= ours then
  if redis.call('GETRANGE', KEYS[5], 0, #ours - 1) ~= ours then
    return 0
  end
  redis.call('PEXPIRE', KEYS[5], ARGV[2]) -- writes in any case, as prolong does
  return 1
end
redis.call('SET', KEYS[5], ours .. ARGV[3], 'PX', ARGV[2]) -- first: a server that is full refuses all or nothing
local waiters = redis.call('HGETALL', KEYS[3])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
if not waiters[1] then
  return 1
end

-- include hears.lua

local last = 0
for i = 1, #waiters, 2 do
  local alive, inbox = string.match(waiters[i + 1], '^1 (%d+) %d+ %S+ (%S+) ')
  if inbox and inbox ~= '-' then
    tell(inbox, 'w ' .. waiters[i])
  elseif inbox and alive ~= '0' then -- a tombstone, which is needed if the record is forgotten too soon
    redis.call('ZADD', KEYS[2], i, waiters[i])
    redis.call('HSET', KEYS[3], waiters[i], waiters[i + 1])
    last = math.max(last, tonumber(alive))
  end
end
if last > 0 then
  redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', last))
  redis.call('PEXPIREAT', KEYS[3], string.format('%.0f', last))
end
return 1
