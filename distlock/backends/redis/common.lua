-- Included by every other script. What a lock consists of, all in one slot by the hash tag {namespace:key}:
--
--   lock     string  "1 <claim ids> <token> <owner> <about>"        expires with the lease
--   queue    zset    claim id -> rank                                 lowest first
--   waiters  hash    claim id -> "1 <alive until> <ttl> <owner> <inbox> <about>"   times in ms
--   clock    string  the highest token given out in this namespace    kept for 24 h
--
-- The leading 1 is the version of the format. <claim ids> has commas; more than one where an owner re-entered.
-- <owner> is "=" and the owner if it may re-enter, "~" and the owner if not, "-" if there is none.
-- <inbox> is the channel of the waiting process; "-" makes the entry a tombstone: a claim that was withdrawn
-- while a request for it may still be on its way.
--
-- Every script names its KEYS and ARGV, and sets LOCK, QUEUE, WAITERS, CLOCK before it calls a function.

local LOCK, QUEUE, WAITERS, CLOCK
local PROVISIONAL = 1000 -- ms within which a waiter that was handed the lock must ask again
local NEAR = 8           -- waiters looked at to find one of another process

local function micros()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Lua's own number format has 14 digits; a token has 16.
local function digits(n)
  return string.format('%.0f', n)
end

-- A hybrid clock: the server's microseconds, or one more than ever before if that clock was set back.
local function next_token(us)
  local top = redis.call('GET', CLOCK)
  if top and us <= tonumber(top) then
    us = tonumber(top) + 1
  end
  redis.call('SET', CLOCK, digits(us), 'PX', 86400000)
  return us
end

local function give(ids, token, owner, about, ttl)
  redis.call('SET', LOCK, '1 ' .. ids .. ' ' .. digits(token) .. ' ' .. owner .. ' ' .. about, 'PX', ttl)
  return token
end

-- ids, token, owner, about; nothing if the value is not one of ours.
local function parse(value)
  local ids, token, owner, about = string.match(value, '^1 (%S+) (%d+) (%S+) (.*)$')
  return ids, tonumber(token), owner, about
end

local function has(ids, id)
  return ids and string.find(',' .. ids .. ',', ',' .. id .. ',', 1, true)
end

local function live_at_least(key, ms)
  if redis.call('PTTL', key) < ms then
    redis.call('PEXPIRE', key, ms)
  end
end

local function dequeue(id)
  redis.call('ZREM', QUEUE, id)
  redis.call('HDEL', WAITERS, id)
end

local function enqueue(id, ttl, record)
  if not redis.call('ZSCORE', QUEUE, id) then
    local last = redis.call('ZREVRANGE', QUEUE, 0, 0, 'WITHSCORES')
    redis.call('ZADD', QUEUE, (tonumber(last[2]) or 0) + 1, id)
  end
  redis.call('HSET', WAITERS, id, record)
  live_at_least(QUEUE, ttl)
  live_at_least(WAITERS, ttl)
end

-- The waiter at position i, once those whose time is up are out of the way: id, ttl, owner, inbox, about, alive.
local function waiter_at(i, now_ms)
  while true do
    local id = redis.call('ZRANGE', QUEUE, i, i)[1]
    if not id then
      return nil
    end
    local record = redis.call('HGET', WAITERS, id)
    local alive, ttl, owner, inbox, about = string.match(record or '', '^1 (%d+) (%d+) (%S+) (%S+) (.*)$')
    if alive and tonumber(alive) > now_ms then
      return id, tonumber(ttl), owner, inbox, about, tonumber(alive)
    end
    dequeue(id)
  end
end

-- If the one that got the lock is stopped and lets it lapse, another process must be there to notice.
local function appoint_standby(inbox, now_ms)
  for i = 0, NEAR - 1 do
    local id, _, _, other = waiter_at(i, now_ms)
    if not id then
      return
    end
    if other ~= inbox and other ~= '-' and redis.call('PUBLISH', other, 's ' .. id) > 0 then
      return
    end
  end
end

-- Hands the free lock to the first waiter that is there: `asker`, who is asking right now, or one whose process
-- receives the news. One that does not receive keeps its place until its time is up (its connection may come
-- back) but is passed over. The grant is provisional: it has to be confirmed by asking again.
-- True if someone has the lock now.
local function hand_over(us, asker)
  local now_ms, i = math.floor(us / 1000), 0
  local last = now_ms
  while true do
    local id, ttl, owner, inbox, about, alive = waiter_at(i, now_ms)
    if not id then
      -- Tombstones and the deaf: nothing of this lock outlives them, however long others would have waited.
      redis.call('PEXPIRE', QUEUE, last - now_ms)
      redis.call('PEXPIRE', WAITERS, last - now_ms)
      return false
    end
    if inbox ~= '-' and (id == asker or redis.call('PUBLISH', inbox, 'g ' .. id) > 0) then
      dequeue(id)
      give(id, next_token(us), owner, about, math.min(PROVISIONAL, ttl))
      appoint_standby(inbox, now_ms)
      return true
    end
    i, last = i + 1, math.max(last, alive)
  end
end

local function waiters_left()
  return redis.call('EXISTS', WAITERS) == 1
end
