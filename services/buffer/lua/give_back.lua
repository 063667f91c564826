#!lua flags=allow-oom
-- Requeues the prompts of leases still open; returns how many were.
sweep()
local returned = 0
for i, id in ipairs(args.ids) do
  local label, problem = problem_of(id)
  local there = redis.call('HMGET', group(id), 'state', 'attempt')
  if label and holds_problem(label, problem, args.attempts[i]) then
    requeue_problem(label, problem)
    count('total.leases_returned', 1)
    returned = returned + 1
  elseif there[1] == 'leased' and tonumber(there[2]) == args.attempts[i] then
    end_lease(id, 'total.leases_returned', args.in_vain)
    returned = returned + 1
  end
end
return returned
