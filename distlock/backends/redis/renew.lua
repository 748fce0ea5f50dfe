-- Renews leases, any number of them in one step. Never shortens one and never revives one, so that a request
-- that arrives late cannot take back what a later one has proven.
--
-- KEYS  the locks
-- ARGV  claim id and ttl in ms, for each
--
-- Returns  for each: 1 it has at least ttl ms from now, 0 it is not the holder
--
-- A key of another type is not the holder's either: it must not cost the other leases of the batch.

-- include common.lua

local results = {}
for i, key in ipairs(KEYS) do
  local id, ttl = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
  local value = redis.pcall('GET', key)
  results[i] = 0
  if type(value) == 'string' and has(parse(value), id) then
    live_at_least(key, ttl)
    results[i] = 1
  end
end
return results
