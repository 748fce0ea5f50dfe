-- Takes a vote back: that of one attempt, or whatever a claim has here.
--
-- KEYS  1 lock  2 tombstone of the claim
-- ARGV  1 claim,node  2 attempt, or "" for any  3 channel to tell, or ""
--       4 ms to remember the claim by, so that a late request comes to nothing; or 0
--
-- Returns  1  it had the vote
--          0  it had not

local value, held = redis.call('GET', KEYS[1]), 0
local voter, attempt = string.match(value or '', '^1 ([^ ,]+,%d+),(%d+),[vs] ')
if voter == ARGV[1] and (ARGV[2] == '' or ARGV[2] == attempt) then
  held = redis.call('DEL', KEYS[1])
  if ARGV[3] ~= '' then
    redis.call('PUBLISH', ARGV[3], ARGV[1])
  end
end
if ARGV[4] ~= '0' then
  redis.call('SET', KEYS[2], '1', 'PX', ARGV[4])
end
return held
