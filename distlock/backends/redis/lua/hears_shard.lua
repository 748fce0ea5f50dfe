-- A cluster of Redis 7 or later: the inbox lies in the slot of the lock, and its listeners are on this very node.

local function tell(inbox, message)
  redis.call('SPUBLISH', inbox, message)
end

local function listens(inbox)
  return redis.call('PUBSUB', 'SHARDNUMSUB', inbox)[2] > 0
end
