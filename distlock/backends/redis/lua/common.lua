-- Included by every other script; itself it includes the one of hears_*.lua that the kind of server wants.
--
-- What a lock consists of, in one slot by the hash tag {namespace:key}:
--
--   lock     string  "1 <claim ids> <token> <owner> <about>"        expires with the lease
--   queue    zset    claim id -> rank                                 lowest first
--   waiters  hash    claim id -> "1 <alive until> <ttl> <owner> <inbox> <about>"   times in ms
--                    "!<inbox>" -> the lock was handed to this process, which has not been heard of since
--                    "?" -> the inbox that the lock was handed to last
--                    "&a", "&b" -> a claim, its inbox and until when (in ms) that is told of what has come of the lock
--
-- and what all locks of a namespace share, or in a cluster those of a slot:
--
--   clock    string  the highest token given out in this namespace    kept for 24 h
--
-- The leading 1 is the version of the format. <claim ids> has commas; more than one where an owner re-entered.
-- <owner> is "=" and the owner if it may re-enter, "~" and the owner if not, "-" if there is none.
-- <inbox> is the channel of the waiting process; "-" makes the entry a tombstone: a claim that was withdrawn
-- while a request for it may still be on its way.
--
-- Every script names its KEYS and ARGV, and sets LOCK, QUEUE, WAITERS, CLOCK before it calls a function.

local LOCK, QUEUE, WAITERS, CLOCK
local PROVISIONAL = 1000 -- ms within which a waiter that was handed the lock must confirm it
local NEAR = 4           -- waiters looked at from either end, to find one of another process
local NOBODY = '1 0 0 - - ' -- so that what is said of a process does not look like one that waits

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

-- Writes in any case: WAIT waits for what was written just before.
local function prolong(lock, ms)
  redis.call('PEXPIRE', lock, math.max(redis.call('PTTL', lock), ms))
end

-- True if others wait.
local function dequeue(id)
  redis.call('ZREM', QUEUE, id)
  if redis.call('EXISTS', QUEUE) == 0 then
    redis.call('DEL', WAITERS) -- what is left is of no use any more
    return false
  end
  redis.call('HDEL', WAITERS, id)
  return true
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

local function waiters_left()
  return redis.call('EXISTS', WAITERS) == 1
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

-- include hears.lua

-- Whether a process would receive a message.
local hearing = {}
local function hears(inbox)
  if hearing[inbox] == nil then
    hearing[inbox] = inbox ~= '-' and listens(inbox)
  end
  return hearing[inbox]
end

-- A process that was handed the lock is in doubt until it shows any sign of life.
local function doubt(inbox)
  redis.call('HSET', WAITERS, '!' .. inbox, NOBODY, '?', NOBODY .. inbox)
end

local function in_doubt(inbox)
  return redis.call('HEXISTS', WAITERS, '!' .. inbox) == 1
end

local function alive_again(inbox)
  redis.call('HDEL', WAITERS, '!' .. inbox)
end

-- Whoever was handed the lock last, confirmed or not, has just spoken.
local function last_alive_again()
  local last = redis.call('HGET', WAITERS, '?')
  if last then
    alive_again(string.sub(last, #NOBODY + 1))
  end
end

local function may_join(owner, holder)
  return owner == holder and string.sub(owner, 1, 1) == '='
end

-- Whether a process other than this one is about to look at the lock, within a second; if not, where to note the
-- next that is told to. Two of them serve all: one is of another process than the one that is handed the lock.
local function stood_by(inbox, now_ms)
  local place = '&a'
  for n, record in ipairs(redis.call('HMGET', WAITERS, '&a', '&b')) do
    local id, other, till = string.match(record or '', '(%S+) (%S+) (%d+)$')
    if till and tonumber(till) > now_ms and redis.call('HEXISTS', WAITERS, id) == 1 then
      if other ~= inbox and hears(other) and not in_doubt(other) then
        return true
      end
      place = n == 1 and '&b' or '&a'
    end
  end
  return false, place
end

-- Tells those in the queue what the hand-over means for them: others of the same owner may enter; and if it is not
-- confirmed yet, another process must be there to notice that it never is: by way of a claim that waits for long yet.
local function tell_others(inbox, owner, confirmed, now_ms)
  local told, joinable, place = {}, string.sub(owner, 1, 1) == '=', nil
  if not confirmed then
    confirmed, place = stood_by(inbox, now_ms)
  end
  for n = 1, 2 * NEAR do -- the last ones, then the first ones: a process may have many in a row
    if confirmed and not joinable then
      return
    end
    local id, _, theirs, other = waiter_at(n <= NEAR and -n or n - NEAR - 1, now_ms)
    if not id then
      return
    end
    if not told[id] and may_join(theirs, owner) and hears(other) then
      tell(other, 'w ' .. id)
      told[id] = true
    elseif not confirmed and other ~= inbox and hears(other) and not in_doubt(other) then
      tell(other, 's ' .. id)
      redis.call('HSET', WAITERS, place, NOBODY .. id .. ' ' .. other .. ' ' .. digits(now_ms + PROVISIONAL))
      confirmed = true
    end
  end
end

-- A grant to a waiter. It is provisional: it has to be confirmed, or asked for again, as `asker` is doing right now.
local function hand_to(us, asker, id, ttl, owner, inbox, about)
  local others = dequeue(id)
  local token = give(id, next_token(us), owner, about, math.min(PROVISIONAL, ttl))
  if id ~= asker then
    tell(inbox, 'g ' .. id .. ' ' .. digits(token) .. ' ' .. digits(us))
  end
  if others then
    if id ~= asker then
      doubt(inbox)
    end
    tell_others(inbox, owner, id == asker, math.floor(us / 1000))
  end
end

-- Hands the free lock to the first waiter that is there: `asker`, who is asking right now, or one whose process
-- receives the news. One that does not receive keeps its place until its time is up (its connection may come
-- back) but is passed over. So is one in doubt, as long as there are others.
-- True if someone has the lock now.
local function hand_over(us, asker)
  local now_ms, i, doubted, second = math.floor(us / 1000), 0, {}, nil
  local last = now_ms
  while true do
    local id, ttl, owner, inbox, about, alive = waiter_at(i, now_ms)
    if not id then
      break
    end
    if id == asker or hears(inbox) and not doubted[inbox] then
      if id == asker or not in_doubt(inbox) then
        hand_to(us, asker, id, ttl, owner, inbox, about)
        return true
      end
      doubted[inbox] = true
      second = second or {id, ttl, owner, inbox, about}
    end
    i, last = i + 1, math.max(last, alive)
  end
  if second then
    hand_to(us, asker, unpack(second))
    return true
  end
  -- Tombstones and the deaf: nothing of this lock outlives them, however long others would have waited.
  redis.call('PEXPIRE', QUEUE, last - now_ms)
  redis.call('PEXPIRE', WAITERS, last - now_ms)
  return false
end
