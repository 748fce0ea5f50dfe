-- Ends a claim, whatever has come of it: a holder, a waiter, or a request that is still on its way.
-- A lock that becomes free goes to the next waiter in this same step.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock
-- ARGV  1 claim id  2 "1" if it may be queued  3 ms to remember it by, so that a late request comes to nothing; or 0
--
-- Returns  1  it held the lock
--          0  it did not

local value = redis.call('GET', KEYS[1])

-- Held by this claim alone, and nobody queues: the common case.
if value and redis.call('EXISTS', KEYS[3]) == 0 and ARGV[3] == '0' then
  local ours = '1 ' .. ARGV[1] .. ' '
  if string.sub(value, 1, #ours) == ours then
    return redis.call('DEL', KEYS[1])
  end
end

-- include common.lua

LOCK, QUEUE, WAITERS, CLOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, queued, late = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])

if queued then
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
    last_alive_again()
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
