-- Asks for a lock. Asked again, it finds its own grant, which that confirms for the full ttl, or its place.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock
-- ARGV  1 claim id  2 ttl in ms  3 owner  4 about  5 inbox to queue with, or "-" not to queue
--
-- Returns  token                          it has the lock
--          {pttl, held for in µs, value}  another has it, for pttl ms more (-1: for ever)
--          error DISTLOCK withdrawn       the claim was given up before this request arrived

-- Free, and nobody queues: the common case, in as few steps as it takes.
if redis.call('EXISTS', KEYS[1], KEYS[3]) == 0 then
  local time, top = redis.call('TIME'), redis.call('GET', KEYS[4])
  local token = time[1] * 1000000 + time[2]
  if top and token <= tonumber(top) then
    token = tonumber(top) + 1
  end
  local digits = string.format('%.0f', token)
  redis.call('SET', KEYS[4], digits, 'PX', 86400000)
  redis.call('SET', KEYS[1], '1 ' .. ARGV[1] .. ' ' .. digits .. ' ' .. ARGV[3] .. ' ' .. ARGV[4], 'PX', ARGV[2])
  return token
end

-- include common.lua

LOCK, QUEUE, WAITERS, CLOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, ttl, owner, about, inbox = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local us = micros()
local mine = redis.call('HGET', WAITERS, id)
if mine and string.match(mine, '^1 %d+ %d+ %S+ %- ') then
  return redis.error_reply('DISTLOCK withdrawn')
end
alive_again(inbox)
local record = '1 ' .. digits(math.floor(us / 1000) + ttl) .. ' ' .. ARGV[2] .. ' ' .. owner .. ' ' .. inbox .. ' ' .. about
if mine and inbox ~= '-' then
  redis.call('HSET', WAITERS, id, record)
end

-- Free, but others were here before: no barging.
if redis.call('EXISTS', LOCK) == 0 and not hand_over(us, id) then
  dequeue(id)
  return give(id, next_token(us), owner, about, ttl)
end

local value = redis.call('GET', LOCK)
local ids, token, holder, rest = parse(value)
if has(ids, id) then
  live_at_least(LOCK, ttl)
  return token
end
if ids and may_join(owner, holder) then
  dequeue(id)
  return give(ids .. ',' .. id, token, holder, rest, math.max(redis.call('PTTL', LOCK), ttl))
end
if inbox ~= '-' then
  enqueue(id, ttl, record)
end
return {redis.call('PTTL', LOCK), us - (token or us), value}
