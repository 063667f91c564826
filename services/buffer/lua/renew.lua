#!lua flags=allow-oom
-- Moves the expiry of leases still held; returns the others.
sweep()
see_worker()
local lost = {}
for i, id in ipairs(args.ids) do
  local label, problem = problem_of(id)
  local there = redis.call('HMGET', group(id), 'state', 'attempt')
  if label and holds_problem(label, problem, args.attempts[i]) then
    redis.call('ZADD', evaluation(label) .. ':leased', NOW + settings.lease_ms, problem)
  elseif there[1] == 'leased' and tonumber(there[2]) == args.attempts[i] then
    redis.call('ZADD', LEASED, NOW + settings.lease_ms, id)
  else
    lost[#lost + 1] = i
  end
end
return lost
