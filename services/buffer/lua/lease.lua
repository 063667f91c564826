#!lua
-- A worker's heartbeat, and the grant rule: a lease of version w while
-- kept_ever + open_leases < (max_staleness + w + 1) * N.
-- Where pods ask for more than that, whoever holds fewest leases is served first
-- (docs/decisions/0009-fair-leases.md).
-- A pod that has a seat in an evaluation gets its problems first, and is told to load its policy.
sweep()
see_worker()

local ASKS_AGAIN = 2000 -- ms: a pod that was refused asks five times a second, unless it is gone

-- Pods that asked in vain just now and could be granted what this one could.
local function rivals()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', ASKING, NOW - ASKS_AGAIN, '+inf')) do
    local loaded = cjson.decode(redis.call('HGET', WORKERS, id) or '[]')[2]
    local same = type(loaded) == 'table' and loaded[1] == args.version and loaded[2] == args.lineage
    if same and id ~= args.worker_id then found[#found + 1] = id end
  end
  return found
end

-- Leases open of each pod, counted anew: no counter can drift.
local function held()
  local leases = {}
  for _, id in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do
    local worker = redis.call('HGET', group(id), 'worker') or ''
    leases[worker] = (leases[worker] or 0) + 1
  end
  return leases
end

local others = args.max_prompts > 0 and rivals() or {}
local leases = #others > 0 and held() or {}

-- A pod that asks too and holds fewer leases than this one, if any.
local function served_first()
  for _, id in ipairs(others) do
    if (leases[id] or 0) < (leases[args.worker_id] or 0) then return id end
  end
  return nil
end

-- Why this pod gets no more; and whether for want of room, or of its fair share of it.
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
    if args.version < number('policy_number') then return text .. '; load ' .. newest, true end
    return text .. string.format('; waiting for step %d to be trained', number('policy_number')), true
  end
  local first = served_first()
  if first then
    return string.format('%d more groups may be leased: %s, which holds fewer leases, is served first',
      room(args.version), first), true
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
  leases[args.worker_id] = (leases[args.worker_id] or 0) + 1
  return id, attempt
end

local granted, problems, why, asking = {}, {}, '', false
local label = take_seat()
for _ = 1, args.max_prompts do
  local problem, attempt = grant_problem(label)
  if not problem then break end
  problems[#problems + 1] = label .. '-' .. problem
  problems[#problems + 1] = attempt
end
for _ = #problems / 2 + 1, args.max_prompts do
  local no, in_vain = refusal()
  if no then
    why, asking = no, in_vain
    break
  end
  local id, attempt = grant()
  granted[#granted + 1] = id
  granted[#granted + 1] = attempt
end
if asking then
  redis.call('ZADD', ASKING, NOW, args.worker_id)
elseif args.max_prompts > 0 then
  redis.call('ZREM', ASKING, args.worker_id)
end
local policy_number, policy_lineage = get('policy_number') or '', get('policy_lineage') or ''
if label and has_queued(label) then policy_number, policy_lineage = pinned_policy(label) end
return {
  state(), why, policy_number, policy_lineage, redis.call('ZCARD', QUEUED), number('epoch'),
  number('position'), granted, problems,
}
