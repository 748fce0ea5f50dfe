-- Renews votes, any number of them in one step. Never shortens one and never revives one, so that a request
-- that arrives late cannot take back what a later one has proven.
--
-- KEYS  the locks
-- ARGV  claim,node and ttl in ms, for each
--
-- Returns  for each: 1 it has at least ttl ms from now, 0 it does not have the vote
--
-- A key of another type is not the holder's either: it must not cost the other leases of the batch.

local results = {}
for i, key in ipairs(KEYS) do
  local value, ttl = redis.pcall('GET', key), tonumber(ARGV[2 * i])
  results[i] = 0
  if type(value) == 'string' and string.match(value, '^1 ([^ ,]+,%d+),') == ARGV[2 * i - 1] then
    if redis.call('PTTL', key) < ttl then
      redis.call('PEXPIRE', key, ttl)
    end
    results[i] = 1
  end
end
return results
