-- Renews leases, any number of them in one step. Never shortens one and never revives one, so that a request
-- that arrives late cannot take back what a later one has proven.
--
-- KEYS  the locks
-- ARGV  claim id and ttl in ms, for each
--
-- Returns  {i, ...}  the positions of those it does not hold, from 1; the others have at least ttl ms from now
--
-- A key of another type is not the holder's either: it must not cost the other leases of the batch.

-- include common.lua

local lost = {}
for i, key in ipairs(KEYS) do
  local id, ttl = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
  local value = redis.pcall('GET', key)
  local ours = '1 ' .. id .. ' '
  -- Held by this claim alone, as in most cases: to take the value apart takes longer than all the rest.
  if type(value) == 'string' and (string.sub(value, 1, #ours) == ours or has(parse(value), id)) then
    prolong(key, ttl)
  else
    lost[#lost + 1] = i
  end
end
return lost
