#!lua flags=allow-oom
-- A trainer starts from the checkpoint of args.step under a new lineage. Returns
-- {'ok', {steps handed out again}, {steps dissolved}} or {'refused', sentence}.
local step = args.step

local function refused(...) return { 'refused', string.format(...) } end

-- Whether the step can be handed out again, verbatim.
local function intact(done)
  local ids = ledger_ids(done)
  if #ids ~= N then return false end
  for _, id in ipairs(ids) do
    if redis.call('HEXISTS', group(id), 'payload') == 0 then return false end
    local where = redis.call('ZSCORE', BATCHED, id) or redis.call('ZSCORE', TRAINED, id)
    if not where or tonumber(where) ~= done then return false end
  end
  return plan_digest(done, ids) == redis.call('HGET', ledger(done), 'digest')
end

local function rebatch(done)
  for _, id in ipairs(ledger_ids(done)) do
    redis.call('ZREM', TRAINED, id)
    place(id, BATCHED, done, 'batched')
  end
  redis.call('HSET', ledger(done), 'state', 'batched')
end

if step < number('checkpoint_step') then
  return refused('the groups of the steps before %d were freed when its checkpoint was written: '
    .. 'resume from checkpoint %d, or start a new run (another run.name)', number('checkpoint_step'),
    number('checkpoint_step'))
end
if args.lineage == get('policy_lineage') and number('policy_number') > step then
  return refused('lineage %s is at v%d already', args.lineage, number('policy_number'))
end

-- A trainer of before is gone: not its first start, and not this call repeated.
if get('policy_lineage') and get('policy_lineage') ~= args.lineage then count('total.resumes', 1) end

-- What the checkpoint says was trained comes first: it may take groups from the steps to replay.
local replay, dissolved, lost = {}, {}, false
for i, entry in ipairs(args.ledger) do
  local there = redis.call('HMGET', ledger(i - 1), 'digest', 'ids', 'state')
  if there[1] ~= entry.digest or there[2] ~= entry.ids or there[3] ~= 'trained' then
    local ids = {}
    for id in string.gmatch(entry.ids, '%S+') do ids[#ids + 1] = id end
    witness(i - 1, ids, entry.digest)
    lost = true
  end
end
for done = step, number('next_step') - 1 do
  if not intact(done) then
    dissolved = dissolve(done)
    break
  end
  rebatch(done)
  replay[#replay + 1] = done
end
free_before(step)
redis.call('HSET', META, 'policy_number', step, 'policy_lineage', args.lineage, 'leases_this_step', 0)
redis.call('HDEL', META, 'end_reason')
if lost then shed() end
supersede_evaluations(step)
for _, one in ipairs(args.evaluated) do acknowledge_evaluation(one[1], one[2]) end
if is_due(step) then open_evaluation(step, args.lineage) end
return { 'ok', replay, dissolved }
