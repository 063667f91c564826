#!lua flags=allow-oom
-- The batch of a step: from its ledger, or cut now if the rule allows. Returns
-- {'plan' | 'cut', digest, {id, version, prompt tokens, lengths, sha256, ...}},
-- {'waiting' | 'finished' | 'refused', sentence}.
local step = args.step
sweep()

local function plan(word)
  local lines = {}
  for _, id in ipairs(ledger_ids(step)) do
    lines[#lines + 1] = id
    local fields = redis.call('HMGET', group(id), 'version', 'prompt_tokens', 'lengths', 'sha256')
    for _, value in ipairs(fields) do lines[#lines + 1] = value or '' end
  end
  return { word, redis.call('HGET', ledger(step), 'digest'), lines }
end

local function refused(...) return { 'refused', string.format(...) } end

local function waiting(...)
  local label = first_evaluation()
  local text = string.format(...)
  return { 'waiting', label and text .. '; ' .. label .. ' is being evaluated' or text }
end

local function end_run()
  local kept, correct = number('stat.groups_kept'), number('stat.groups_all_correct')
  local wrong, failed = number('stat.groups_all_wrong'), number('stat.groups_failed')
  local finished = math.max(1, kept + correct + wrong + failed)
  local reason = string.format(
    'step %d used %d leases without a batch: %.0f%% of the finished groups were all correct, '
      .. '%.0f%% all wrong, %.0f%% could not be judged', step, number('leases_this_step'),
    100 * correct / finished, 100 * wrong / finished, 100 * failed / finished)
  redis.call('HSET', META, 'end_reason', reason)
  open_evaluation(number('policy_number'), get('policy_lineage'))
  return { 'finished', reason }
end

local function cut()
  local ids = redis.call('ZRANGE', READY, 0, N - 1)
  for _, id in ipairs(ids) do
    if step - tonumber(redis.call('HGET', group(id), 'version')) > S then
      count('stat.groups_stale', 1)
      count('total.stale', 1)
    end
    redis.call('ZREM', READY, id)
    place(id, BATCHED, step, 'batched')
  end
  redis.call('HSET', ledger(step), 'ids', table.concat(ids, ' '), 'digest', plan_digest(step, ids),
    'state', 'batched')
  redis.call('HSET', META, 'next_step', step + 1)
end

if args.lineage ~= get('policy_lineage') then
  return refused('lineage %s is not the current one (%s): another trainer has resumed, or Redis lost '
    .. 'the resume; restart the trainer', args.lineage, get('policy_lineage') or 'none')
end
if step < number('checkpoint_step') then
  return refused('step %d lies before the checkpoint of step %d: it can never be handed out again', step,
    number('checkpoint_step'))
end
if redis.call('EXISTS', ledger(step)) == 1 then return plan('plan') end
if step ~= number('policy_number') or step ~= number('next_step') then
  return refused('step %d is out of order: the policy is v%d and the next batch to cut is %d; restart the '
    .. 'trainer', step, number('policy_number'), number('next_step'))
end
if training_over() then return { 'finished', end_reason() } end

local ready = redis.call('ZCARD', READY)
if ready < N then
  if number('leases_this_step') >= settings.max_leases_per_step and open() == 0 then return end_run() end
  local low = redis.call('ZRANGE', OPEN, 0, 0, 'WITHSCORES')[2]
  local oldest = low and string.format(', oldest v%d', math.floor(tonumber(low) / VERSION)) or ''
  local wanted = settings.dynamic_sampling and 'informative groups' or 'groups'
  return waiting('%d of %d %s; %d leases open%s', ready, N, wanted, open(), oldest)
end
local w, excess = first_overfull(step, N)
if w then
  return waiting('%d leases of v%d or older must end before this batch can be cut (%d are open)', excess, w,
    up_to(OPEN, w))
end
cut()
return plan('cut')
