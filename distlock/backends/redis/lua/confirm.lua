-- Confirms a lock that was handed to a claim: it has the full ttl from now. Never shortens, never revives.
--
-- KEYS  1 lock  2 queue  3 waiters
-- ARGV  1 ttl in ms  2 inbox that it was told by  3 claim id
--
-- Returns  1 it holds the lock; 0 it does not

redis.call('HDEL', KEYS[3], '!' .. ARGV[2]) -- its process is alive
local ids = string.match(redis.call('GET', KEYS[1]) or '', '^1 (%S+) ')
if not ids or not string.find(',' .. ids .. ',', ',' .. ARGV[3] .. ',', 1, true) then
  return 0
end
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[1])))
return 1
