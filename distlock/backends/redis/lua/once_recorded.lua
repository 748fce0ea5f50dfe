-- What is kept of work that was done once. Changes nothing.
--
-- KEYS  1 record
--
-- Returns  {pttl, record}  pttl in ms (-1: for ever); or nil

local record = redis.call('GET', KEYS[1])
return record and {redis.call('PTTL', KEYS[1]), record}
