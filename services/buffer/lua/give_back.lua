#!lua flags=allow-oom
-- Requeues the prompts of leases still open; returns how many.
sweep()
local returned = 0
for i, id in ipairs(args.ids) do
  local there = redis.call('HMGET', group(id), 'state', 'attempt')
  if there[1] == 'leased' and tonumber(there[2]) == args.attempts[i] then
    end_lease(id, 'total.leases_returned')
    returned = returned + 1
  end
end
return returned
