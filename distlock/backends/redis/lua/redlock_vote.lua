-- Asks one node of several for its vote. Asked again, it finds the claim's own vote, which that renews.
--
-- A lock on a node:  string  "1 <claim>,<node>,<attempt>,<v or s> <token> <owner> <about>"   expires with the lease
--   v: voted for, and <token> is the least that this node accepts; s: sealed with <token>. <node> is the place of this
--   node in the asker's list: a server that is named twice must not count twice.
--
-- KEYS  1 lock  2 tombstone of the claim  3 clock
-- ARGV  1 claim,node  2 attempt  3 ttl in ms  4 owner  5 about
--
-- Returns  {1, token}                 its vote, and the least token that it accepts
--          {2, token}                 the same, sealed with that token before
--          {0, pttl, now in µs, value}  another has its vote
--          error DISTLOCK withdrawn   the claim was given up before this request arrived

if redis.call('EXISTS', KEYS[2]) == 1 then
  return redis.error_reply('DISTLOCK withdrawn')
end
local time, value = redis.call('TIME'), redis.call('GET', KEYS[1])
local us = time[1] * 1000000 + time[2]

-- Lua's own number format has 14 digits; a token has 16.
local function vote(state, token, rest, ttl)
  local digits = string.format('%.0f', token)
  redis.call('SET', KEYS[1], '1 ' .. ARGV[1] .. ',' .. ARGV[2] .. ',' .. state .. ' ' .. digits .. ' ' .. rest, 'PX', ttl)
end

if not value then
  -- Above all that was ever sealed here: the vote stands alone until then, so that this stays true.
  local token = math.max(us, tonumber(redis.call('GET', KEYS[3]) or '0') + 1)
  vote('v', token, ARGV[4] .. ' ' .. ARGV[5], ARGV[3])
  return {1, token}
end
local voter, attempt, state, token, rest = string.match(value, '^1 ([^ ,]+,%d+),(%d+),([vs]) (%d+) (.*)$')
if voter ~= ARGV[1] then
  return {0, redis.call('PTTL', KEYS[1]), us, value}
end
if tonumber(attempt) <= tonumber(ARGV[2]) then -- else it was overtaken on its way
  vote(state, tonumber(token), rest, math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3])))
end
return {state == 's' and 2 or 1, tonumber(token)}
