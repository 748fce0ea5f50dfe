-- Ends the lease of one token, whoever holds it. A lock that becomes free goes to the next waiter in this same step.
--
-- KEYS  1 lock  2 queue  3 waiters  4 clock
-- ARGV  1 token
--
-- Returns  1  it was the lease of that token, and has ended
--          0  it was not

-- include common.lua

LOCK, QUEUE, WAITERS, CLOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local _, token = parse(redis.call('GET', LOCK) or '')
if not token or digits(token) ~= ARGV[1] then
  return 0
end
if not waiters_left() or not hand_over(micros(), nil) then
  redis.call('DEL', LOCK)
end
return 1
