-- Writes the token that the nodes are to agree on beside the vote of one attempt, as long as that stands.
--
-- KEYS  1 lock  2 clock
-- ARGV  1 claim,node,attempt  2 token
--
-- Returns  0      sealed
--          token  too low: the least that this node accepts
--          -1     the vote is gone

local value = redis.call('GET', KEYS[1])
local voter, least, rest = string.match(value or '', '^1 ([^ ,]+,%d+,%d+),[vs] (%d+) (.*)$')
if voter ~= ARGV[1] then
  return -1
end
local token = tonumber(ARGV[2])
if token < tonumber(least) then
  return tonumber(least)
end
local ttl = math.max(redis.call('PTTL', KEYS[1]), 1)
redis.call('SET', KEYS[1], '1 ' .. voter .. ',s ' .. ARGV[2] .. ' ' .. rest, 'PX', ttl)
if token > tonumber(redis.call('GET', KEYS[2]) or '0') then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', 86400000)
end
return 0
