#!lua flags=allow-oom
-- A step was trained and the next policy published.
-- Returns {'ok', state, workers, stats, policies to be evaluated} or {'refused', sentence}.
local step = args.step

local function refused(...) return { 'refused', string.format(...) } end

if args.lineage ~= get('policy_lineage') then
  return refused('lineage %s is not the current one (%s): another trainer has resumed, or Redis lost '
    .. 'the resume; restart the trainer', args.lineage, get('policy_lineage') or 'none')
end
-- Everything sampled since the commit before. A step trained again keeps what it was first given,
-- for nothing is sampled while batches are replayed.
local function stats()
  local known = redis.call('HGET', ledger(step), 'stats')
  if known then return known end
  local taken = {}
  note_evaluating()
  for _, name in ipairs(STATS) do
    taken[name] = get('stat.' .. name) or '0'
    redis.call('HDEL', META, 'stat.' .. name)
  end
  redis.call('HSET', ledger(step), 'stats', cjson.encode(taken))
  return redis.call('HGET', ledger(step), 'stats')
end

local function ok() return { 'ok', state(), live_workers(), stats(), pinned() } end

sweep_evaluations()
local there = redis.call('HMGET', ledger(step), 'digest', 'state', 'ids')
local same = there[1] == args.digest and there[3] == table.concat(args.ids, ' ')
if number('policy_number') > step then
  if same and there[2] == 'trained' then return ok() end
  return refused('step %d was committed before, with another batch (digest %s)', step, there[1] or 'lost')
end
if number('policy_number') < step then
  return refused('step %d is out of order: the policy is v%d; restart the trainer, so that it resumes',
    step, number('policy_number'))
end
local id, other = trained_elsewhere(step, args.ids)
if id then return refused('group %s was trained in step %d already', id, other) end

if same then
  for _, one in ipairs(args.ids) do
    redis.call('ZREM', BATCHED, one)
    place(one, TRAINED, step, 'trained')
  end
  redis.call('HSET', ledger(step), 'state', 'trained')
else
  -- The ledgers after it were cut from a state that never was.
  dissolve(step + 1)
  witness(step, args.ids, args.digest)
  shed()
end
redis.call('HSET', META, 'policy_number', step + 1, 'leases_this_step', 0)
if is_due(step + 1) then open_evaluation(step + 1, args.lineage) end
return ok()
