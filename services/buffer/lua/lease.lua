#!lua
-- A worker's heartbeat, and the grant rule: a lease of version w while
-- kept_ever + open_leases < (max_staleness + w + 1) * N.
-- A pod that has a seat in an evaluation gets its problems first, and is told to load its policy.
sweep()
see_worker()

local function refusal()
  if state() == 'waiting' then return 'no policy has been published yet' end
  if training_over() then
    local label = first_evaluation()
    return end_reason() .. (label and '; ' .. label .. ' is being evaluated' or '')
  end
  local newest = string.format('v%d-%s', number('policy_number'), get('policy_lineage'))
  if not args.version then return 'load ' .. newest .. ' first' end
  if args.lineage ~= get('policy_lineage') then
    return string.format('v%d-%s is superseded: load %s', args.version, args.lineage, newest)
  end
  if args.version > number('policy_number') then
    return string.format('v%d is not published: load %s', args.version, newest)
  end
  if number('leases_this_step') >= settings.max_leases_per_step then
    return string.format('step %d has used its %d leases', number('policy_number'),
      settings.max_leases_per_step)
  end
  if room(args.version) <= 0 then
    local text = string.format('%d groups kept and %d leases open: all that v%d may sample',
      kept(), open(), args.version)
    if args.version < number('policy_number') then return text .. '; load ' .. newest end
    return text .. string.format('; waiting for step %d to be trained', number('policy_number'))
  end
  if redis.call('ZCARD', QUEUED) == 0 then return 'the queue is empty' end
  return nil
end

local function grant()
  local id = redis.call('ZRANGE', QUEUED, 0, 0)[1]
  redis.call('ZREM', QUEUED, id)
  local order = redis.call('HINCRBY', META, 'lease_order', 1)
  local attempt = redis.call('HINCRBY', group(id), 'attempt', 1)
  redis.call('HSET', group(id), 'version', args.version, 'lineage', args.lineage, 'order', order,
    'worker', args.worker_id)
  place(id, LEASED, NOW + settings.lease_ms, 'leased')
  redis.call('ZADD', OPEN, args.version * VERSION + order, id)
  count('leases_this_step', 1)
  count('total.leases_granted', 1)
  count('stat.groups_leased', 1)
  return id, attempt
end

local granted, problems, why = {}, {}, ''
local label = take_seat()
for _ = 1, args.max_prompts do
  local problem, attempt = grant_problem(label)
  if not problem then break end
  problems[#problems + 1] = label .. '-' .. problem
  problems[#problems + 1] = attempt
end
for _ = #problems / 2 + 1, args.max_prompts do
  local no = refusal()
  if no then
    why = no
    break
  end
  local id, attempt = grant()
  granted[#granted + 1] = id
  granted[#granted + 1] = attempt
end
local policy_number, policy_lineage = get('policy_number') or '', get('policy_lineage') or ''
if label and has_queued(label) then policy_number, policy_lineage = pinned_policy(label) end
return {
  state(), why, policy_number, policy_lineage, redis.call('ZCARD', QUEUED), number('epoch'),
  number('position'), granted, problems,
}
