-- Ends a claim, whatever has come of it: a holder, a waiter, or a request that is still on its way.
-- A lock that becomes free goes to the next waiter in this same step.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock
-- ARGV  1 claim id  2 "1" if it may be queued  3 ms to remember it by, so that a late request comes to nothing; or 0
--
-- Returns  1  it held the lock
--          0  it did not

local value, first = redis.call('GET', KEYS[1]), redis.call('ZRANGE', KEYS[2], 0, 1)
local ours = '1 ' .. ARGV[1] .. ' '

-- Held by this claim alone, and one waits or none: the common cases, in as few steps as they take.
if value and not first[2] and ARGV[3] == '0' and string.sub(value, 1, #ours) == ours then
  if not first[1] then
    return redis.call('DEL', KEYS[1])
  end
  -- include hears.lua
  local record, time = redis.call('HGET', KEYS[3], first[1]), redis.call('TIME')
  local alive, ttl, owner, inbox, about = string.match(record or '', '^1 (%d+) (%d+) ([-~]%S*) (%S+) (.*)$')
  if alive and tonumber(alive) > time[1] * 1000 + time[2] / 1000 and inbox ~= '-' and listens(inbox) then
    local token, top = time[1] * 1000000 + time[2], redis.call('GET', KEYS[4])
    if top and token <= tonumber(top) then
      token = tonumber(top) + 1
    end
    local digits = string.format('%.0f', token)
    redis.call('DEL', KEYS[2], KEYS[3])
    redis.call('SET', KEYS[4], digits, 'PX', 86400000)
    redis.call('SET', KEYS[1], '1 ' .. first[1] .. ' ' .. digits .. ' ' .. owner .. ' ' .. about,
      'PX', math.min(1000, tonumber(ttl))) -- provisional
    tell(inbox, 'g ' .. first[1] .. ' ' .. digits .. ' ' .. string.format('%.0f', time[1] * 1000000 + time[2]))
    return 1
  end
end

-- include common.lua

LOCK, QUEUE, WAITERS, CLOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, queued, late = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])

-- A tombstone stays: the request that it waits for may come yet.
if queued and not string.match(redis.call('HGET', WAITERS, id) or '', '^1 %d+ %d+ %S+ %- ') then
  dequeue(id)
end
local held = 0
if not value then
  if waiters_left() then
    hand_over(micros(), nil)
  end
else
  local ids, token, owner, about = parse(value)
  if ids == id then
    held = 1
    if first[1] then
      last_alive_again()
    end
    if not waiters_left() or not hand_over(micros(), nil) then
      redis.call('DEL', LOCK)
    end
  elseif has(ids, id) then
    held = 1
    last_alive_again()
    local others = {}
    for other in string.gmatch(ids, '[^,]+') do
      if other ~= id then
        others[#others + 1] = other
      end
    end
    give(table.concat(others, ','), token, owner, about, math.max(redis.call('PTTL', LOCK), 1))
  end
end
if late > 0 then
  enqueue(id, late, '1 ' .. digits(math.floor(micros() / 1000) + late) .. ' ' .. late .. ' - - {}')
end
return held
