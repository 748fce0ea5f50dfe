-- Asks for a lock. Asked again, it finds its own grant, which that confirms for the full ttl, or its place.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock
-- ARGV  1 claim id  2 ttl in ms  3 owner  4 about  5 inbox to queue with, or "-" not to queue
--
-- Returns  token                          it has the lock
--          {pttl, held for in µs, value}  another has it, for pttl ms more (-1: for ever)
--          error DISTLOCK withdrawn       the claim was given up before this request arrived

-- Free, and nobody queues: the common case, in as few steps as it takes.
local there = redis.call('EXISTS', KEYS[1], KEYS[3])
if there == 0 then
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

-- The two other steps of a hand-over: it was handed to this claim, which confirms it; or one more queues.
local value = redis.call('GET', KEYS[1])
if value then
  local ours = '1 ' .. ARGV[1] .. ' '
  if string.sub(value, 1, #ours) == ours then
    if there == 2 then
      redis.call('HDEL', KEYS[3], '!' .. ARGV[5])
    end
    redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[2]))) -- see prolong
    return tonumber(string.match(value, '^%d+', #ours + 1))
  end
  local known = ARGV[5] ~= '-' and redis.call('HMGET', KEYS[3], ARGV[1], '!' .. ARGV[5])
  if known and not known[1] and string.sub(ARGV[3], 1, 1) ~= '=' then
    if known[2] then
      redis.call('HDEL', KEYS[3], '!' .. ARGV[5])
    end
    local time, ttl = redis.call('TIME'), tonumber(ARGV[2])
    local alive = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ttl)
    local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
    redis.call('ZADD', KEYS[2], (tonumber(last[2]) or 0) + 1, ARGV[1])
    redis.call('HSET', KEYS[3], ARGV[1],
      '1 ' .. alive .. ' ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[5] .. ' ' .. ARGV[4])
    if redis.call('PTTL', KEYS[2]) < ttl or redis.call('PTTL', KEYS[3]) < ttl then
      redis.call('PEXPIRE', KEYS[2], ttl)
      redis.call('PEXPIRE', KEYS[3], ttl)
    end
    local us, token = time[1] * 1000000 + time[2], string.match(value, '^1 %S+ (%d+) ')
    return {redis.call('PTTL', KEYS[1]), us - (token or us), value}
  end
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

value = redis.call('GET', LOCK)
local ids, token, holder, rest = parse(value)
if has(ids, id) then
  prolong(LOCK, ttl)
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
