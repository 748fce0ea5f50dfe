-- Keeps the places of all waiters of one process, and finds what a lost message would have told them.
--
-- KEYS  1 clock; then lock, queue, waiters for each lock waited for
-- ARGV  1 the inbox of that process, to which an echo is sent; then for each lock: how many claims, and their ids
--
-- Returns  for each lock: {pttl, ids...}  pttl: ms until it ends by itself (-2: free, -1: never);
--          ids: claims that had better ask again, as they are out of the queue or may enter

-- include common.lua

CLOCK = KEYS[1]
local us = micros()
local now_ms = math.floor(us / 1000)
local results, arg = {}, 2

redis.call('PUBLISH', ARGV[1], 'e')

for k = 2, #KEYS, 3 do
  LOCK, QUEUE, WAITERS = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  local ids, claims = {}, {}
  for n = 1, tonumber(ARGV[arg]) do
    local id = ARGV[arg + n]
    claims[n] = id
    local ttl, rest = string.match(redis.call('HGET', WAITERS, id) or '', '^1 %d+ (%d+)( .*)$')
    if ttl then
      redis.call('HSET', WAITERS, id, '1 ' .. digits(now_ms + ttl) .. ' ' .. ttl .. rest)
      live_at_least(QUEUE, tonumber(ttl))
      live_at_least(WAITERS, tonumber(ttl))
    else
      ids[#ids + 1] = id
    end
  end
  arg = arg + 1 + #claims
  if redis.call('EXISTS', LOCK) == 0 and waiters_left() and not hand_over(us, nil) then
    ids = claims -- free, but no message gets through: let them ask
  end
  table.insert(ids, 1, redis.call('PTTL', LOCK))
  results[#results + 1] = ids
end
return results
