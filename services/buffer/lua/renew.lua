#!lua flags=allow-oom
-- Moves the expiry of leases still held; returns the others.
sweep()
see_worker()
local lost = {}
for i, id in ipairs(args.ids) do
  local there = redis.call('HMGET', group(id), 'state', 'attempt')
  if there[1] == 'leased' and tonumber(there[2]) == args.attempts[i] then
    redis.call('ZADD', LEASED, NOW + settings.lease_ms, id)
  else
    lost[#lost + 1] = i
  end
end
return lost
