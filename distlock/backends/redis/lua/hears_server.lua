-- A single server: it counts all that listen. (PUBLISH counts listeners to a pattern too, such as a monitor.)

local function tell(inbox, message)
  redis.call('PUBLISH', inbox, message)
end

local function listens(inbox)
  return redis.call('PUBSUB', 'NUMSUB', inbox)[2] > 0
end
