-- Asks for work that is to be done once: finds the record of it, or else is what acquire.lua says.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock  5 record
-- ARGV  as of acquire.lua
--
-- Returns  {pttl, record}  it is done, and the record is kept for pttl ms more (-1: for ever)
--          else            as acquire.lua

local record = redis.call('GET', KEYS[5])
if record then
  return {redis.call('PTTL', KEYS[5]), record}
end

-- include acquire.lua
