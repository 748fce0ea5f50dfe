-- Keeps the places of all waiters of one process, and finds what a lost message would have told them.
--
-- KEYS  1 clock; then lock, queue, waiters for each lock waited for
-- ARGV  1 the inbox of that process  2 "1" to send it an echo; then for each lock: how many claims, and their ids
--
-- Returns  {heard, then for each lock: {pttl, ids...}}
--          heard: 0 if this server knows that nobody listens to the inbox, 1 if not;
--          pttl: ms until the lock ends by itself (-2: free, -1: never);
--          ids: claims that had better ask again, as they are out of the queue or may enter

-- include common.lua

CLOCK = KEYS[1]
local inbox, us = ARGV[1], micros()
local now_ms = math.floor(us / 1000)

local function keep(claims)
  alive_again(inbox)
  local _, _, holder = parse(redis.call('GET', LOCK) or '')
  local found, longest = {}, 0
  for _, id in ipairs(claims) do
    local ttl, owner, rest = string.match(redis.call('HGET', WAITERS, id) or '', '^1 %d+ (%d+) (%S+)( .*)$')
    if ttl then
      redis.call('HSET', WAITERS, id, '1 ' .. digits(now_ms + ttl) .. ' ' .. ttl .. ' ' .. owner .. rest)
      longest = math.max(longest, tonumber(ttl))
    end
    if not ttl or may_join(owner, holder) then
      found[#found + 1] = id
    end
  end
  if longest > 0 then
    live_at_least(QUEUE, longest)
    live_at_least(WAITERS, longest)
  end
  if redis.call('EXISTS', LOCK) == 0 and waiters_left() and not hand_over(us, nil) then
    found = claims -- free, but no message gets through: let them ask
  end
  return redis.call('PTTL', LOCK), found
end

local results, arg = {1}, 3
if ARGV[2] == '1' then
  tell(inbox, 'e')
  results[1] = listens(inbox) and 1 or 0
end
for k = 2, #KEYS, 3 do
  LOCK, QUEUE, WAITERS = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  local claims = {}
  for n = 1, tonumber(ARGV[arg]) do
    claims[n] = ARGV[arg + n]
  end
  arg = arg + 1 + #claims
  local kept, pttl, ids = pcall(keep, claims)
  if not kept then -- a key of another type, most likely; who asks is told, and the other locks do not suffer
    pttl, ids = -1, claims
  end
  local result = {pttl}
  for n, id in ipairs(ids) do
    result[n + 1] = id
  end
  results[#results + 1] = result
end
return results
