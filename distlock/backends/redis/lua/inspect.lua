-- Who holds a lock and who waits for it. Changes nothing.
--
-- KEYS  1 lock  2 queue  3 waiters
--
-- Returns  {value or nil as "", pttl, now in µs, id, record, id, record, ...}  in the order of the queue

-- include common.lua

local us = micros()
local reply = {redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]), us}
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local record = redis.call('HGET', KEYS[3], id)
  local alive, inbox = string.match(record or '', '^1 (%d+) %d+ %S+ (%S+) ')
  if alive and tonumber(alive) * 1000 > us and inbox ~= '-' then
    reply[#reply + 1] = id
    reply[#reply + 1] = record
  end
end
return reply
