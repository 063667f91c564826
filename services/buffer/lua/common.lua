-- Shared by every script: Python puts this text between a script's first line and its body.
--
-- KEYS[1] is the run's meta key, ARGV[1] the settings and the clock, ARGV[2] the call's arguments (JSON).
-- All keys are made here; they share KEYS[1]'s hash tag, so they lie in one cluster slot.
--
--   meta            hash: cursor, issued, lease_order, policy, checkpoint_step, next_step, total.*, stat.*
--   g:<id>          hash of one live group: state, q, attempt, version, lineage, order, payload, ...
--   queued          zset by place in the prompt order: a prompt that comes back is at the front again
--   leased, open    zsets of the leases: by expiry in ms, and by version * 2^32 + lease order
--   ready           zset by version * 2^32 + lease order: the order batches are cut in
--   batched,trained zsets by step
--   dropped:<why>   zset by the attempt that was accepted
--   ledger:<step>   hash: ids in order, digest, stats, state (batched | trained)
--   workers, seen   hash and zset: rollout pods as they describe themselves, and when
--   asking          zset by time: rollout pods that asked for more than there was room for
--   evaluations, evaluated, e:<label>, seats: see evaluation.lua
local META = KEYS[1]
local PREFIX = string.sub(META, 1, -5)
local QUEUED, LEASED, OPEN = PREFIX .. 'queued', PREFIX .. 'leased', PREFIX .. 'open'
local READY, BATCHED, TRAINED = PREFIX .. 'ready', PREFIX .. 'batched', PREFIX .. 'trained'
local WORKERS, SEEN, ASKING = PREFIX .. 'workers', PREFIX .. 'seen', PREFIX .. 'asking'
local EVALUATIONS, EVALUATED, SEATS = PREFIX .. 'evaluations', PREFIX .. 'evaluated', PREFIX .. 'seats'
local WHYS = { 'all_correct', 'all_wrong', 'failed' }
local STATS = {
  'groups_leased', 'groups_kept', 'groups_all_correct', 'groups_all_wrong', 'groups_failed',
  'groups_stale', 'rollouts', 'rollouts_judged', 'rollouts_correct', 'rollouts_truncated',
  'tokens_generated', 'reward_sum', 'seconds_evaluate',
}
local VERSION = 4294967296

local settings = cjson.decode(ARGV[1])
local args = cjson.decode(ARGV[2])
local N, S, NOW = settings.prompts_per_step, settings.max_staleness, settings.now

local function group(id) return PREFIX .. 'g:' .. id end
local function dropped(why) return PREFIX .. 'dropped:' .. why end
local function ledger(step) return PREFIX .. string.format('ledger:%.0f', step) end

local function get(field) return redis.call('HGET', META, field) end
local function number(field) return tonumber(get(field) or 0) end
local function count(field, by) redis.call('HINCRBY', META, field, by) end

-- kept_ever and open_leases of the grant rule, counted from the indexes: no counter can drift.
local function kept()
  return redis.call('ZCARD', READY) + redis.call('ZCARD', BATCHED) + redis.call('ZCARD', TRAINED)
end
local function open() return redis.call('ZCARD', OPEN) end
-- The grant rule: how many more groups of version w may be leased.
local function room(w) return (S + w + 1) * N - kept() - open() end

local function training_over()
  if get('end_reason') then return true end
  return get('policy_lineage') and number('policy_number') >= settings.steps
end

-- A run has finished when nothing is left to train or to evaluate.
local function state()
  if not get('policy_lineage') then return 'waiting' end
  if training_over() and redis.call('ZCARD', EVALUATIONS) == 0 then return 'finished' end
  return 'running'
end

local function end_reason()
  local reason = get('end_reason')
  if reason then return reason end
  if not training_over() then return '' end
  return string.format('all %d steps are trained', settings.steps)
end

local function place(id, index, score, name)
  redis.call('ZADD', index, score, id)
  redis.call('HSET', group(id), 'state', name)
end

local function make_ready(id)
  local lease = redis.call('HMGET', group(id), 'version', 'order')
  place(id, READY, tonumber(lease[1]) * VERSION + tonumber(lease[2]), 'ready')
end

local function leave(id)
  for _, index in ipairs({ QUEUED, LEASED, OPEN, READY, BATCHED, TRAINED }) do
    redis.call('ZREM', index, id)
  end
end

-- Whatever was sampled is forgotten; the prompt waits at the front, where it came from.
local function requeue(id)
  leave(id)
  redis.call('HDEL', group(id), 'payload', 'sha256', 'lengths', 'prompt_tokens', 'disposition',
    'rebuilt')
  place(id, QUEUED, tonumber(redis.call('HGET', group(id), 'q') or 0), 'queued')
end

-- Of a dropped group only its identity stays, with the attempt that decided it.
local function drop(id, why)
  leave(id)
  redis.call('ZADD', dropped(why), redis.call('HGET', group(id), 'attempt'), id)
  redis.call('DEL', group(id))
end

-- A prompt that no pod can finish, or that even ends pods, would be leased for ever, first of all.
local LEASES_IN_VAIN = 8

-- A lease that ends without a result gives its slot back, in the step's allowance too.
local function end_lease(id, total, in_vain)
  count(total, 1)
  if in_vain and redis.call('HINCRBY', group(id), 'in_vain', 1) >= LEASES_IN_VAIN then
    drop(id, 'failed')
    count('total.failed', 1)
    count('total.given_up', 1)
    count('stat.groups_failed', 1)
    return
  end
  requeue(id)
  if number('leases_this_step') > 0 then count('leases_this_step', -1) end
end

local function expire_leases()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASED, '-inf', NOW)) do
    end_lease(id, 'total.leases_expired', true)
  end
end

local function see_worker()
  redis.call('HSET', WORKERS, args.worker_id, args.worker)
  redis.call('ZADD', SEEN, NOW, args.worker_id)
  local gone = redis.call('ZRANGEBYSCORE', SEEN, '-inf', NOW - 2 * settings.lease_ms)
  for _, id in ipairs(gone) do
    redis.call('ZREM', SEEN, id)
    redis.call('ZREM', ASKING, id)
    redis.call('HDEL', WORKERS, id)
    redis.call('HDEL', SEATS, id)
  end
end

local function live_workers()
  local workers = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', SEEN, NOW - 2 * settings.lease_ms, '+inf')) do
    workers[#workers + 1] = redis.call('HGET', WORKERS, id) or nil
  end
  return workers
end

-- How many groups of version w or older an index holds.
local function up_to(index, w)
  return redis.call('ZCOUNT', index, '-inf', string.format('(%.0f', (w + 1) * VERSION))
end

local function versions()
  local low, high
  for _, index in ipairs({ READY, OPEN }) do
    local first = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')[2]
    if first then
      local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
      low = math.min(low or math.huge, math.floor(tonumber(first) / VERSION))
      high = math.max(high or 0, math.floor(tonumber(last) / VERSION))
    end
  end
  return low, high
end

-- The cut rule (docs/decisions/0002-cut-rule.md): once batch `step` has taken the `taken` oldest ready
-- groups, the later batches can use at most max(0, w + S - step) * N groups of version w or older before
-- those are too stale. Returns the first w of which more would be left, and by how many.
local function first_overfull(step, taken)
  local low, high = versions()
  if not low then return nil end
  for w = low, high do
    local limit = math.max(0, w + S - step) * N
    local left = math.max(0, up_to(READY, w) - taken) + up_to(OPEN, w)
    if left > limit then return w, left - limit end
  end
  return nil
end

-- After Redis lost groups, others may have been sampled in their place: more than can be trained in time.
-- Only then is work thrown away; leases first, they have given nothing yet.
local function shed()
  local w, excess = first_overfull(number('next_step') - 1, 0)
  while w do
    for _, index in ipairs({ OPEN, READY }) do
      local bound = string.format('(%.0f', (w + 1) * VERSION)
      for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', index, bound, '-inf', 'LIMIT', 0, excess)) do
        requeue(id)
        excess = excess - 1
      end
      if excess == 0 then break end
    end
    w, excess = first_overfull(number('next_step') - 1, 0)
  end
end

local function ledger_ids(step)
  local ids = {}
  for id in string.gmatch(redis.call('HGET', ledger(step), 'ids') or '', '%S+') do ids[#ids + 1] = id end
  return ids
end

-- The same text as dapod.ledger.plan_digest.
local function plan_digest(step, ids)
  local lines = { string.format('%.0f %.0f\n', step, settings.prompts_per_update) }
  for i, id in ipairs(ids) do
    lines[i + 1] = id .. ' ' .. (redis.call('HGET', group(id), 'sha256') or '') .. '\n'
  end
  return redis.sha1hex(table.concat(lines))
end

-- A group leaves its batch: ready again, or queued when its payload is lost.
local function release(id)
  if redis.call('HEXISTS', group(id), 'payload') == 0 then return requeue(id) end
  leave(id)
  make_ready(id)
end

-- Step `first` and all later ones are cut anew.
local function dissolve(first)
  local steps = {}
  for step = first, number('next_step') - 1 do
    steps[#steps + 1] = step
    redis.call('DEL', ledger(step))
  end
  for _, index in ipairs({ BATCHED, TRAINED }) do
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, first, '+inf')) do
      release(id)
    end
  end
  redis.call('HSET', META, 'next_step', math.min(first, number('next_step')))
  return steps
end

-- A group of this entry that was trained in another step, if any: then the entry must be refused.
local function trained_elsewhere(step, ids)
  for _, id in ipairs(ids) do
    local where = redis.call('ZSCORE', TRAINED, id)
    if where and tonumber(where) ~= step then return id, tonumber(where) end
  end
  return nil
end

-- The trainer is the second witness: what it trained is trained, wherever Redis thinks it is.
local function witness(step, ids, digest)
  if redis.call('EXISTS', ledger(step)) == 1 then
    for _, id in ipairs(ledger_ids(step)) do
      local where = redis.call('ZSCORE', BATCHED, id) or redis.call('ZSCORE', TRAINED, id)
      if where and tonumber(where) == step then release(id) end
    end
  end
  for _, id in ipairs(ids) do
    local known = redis.call('EXISTS', group(id)) == 1 or redis.call('ZSCORE', TRAINED, id)
    leave(id)
    for _, why in ipairs(WHYS) do
      if redis.call('ZREM', dropped(why), id) == 1 then known = true end
    end
    if not known then count('issued', 1) end
    if step < number('checkpoint_step') then
      redis.call('ZADD', TRAINED, step, id)
    else
      place(id, TRAINED, step, 'trained')
      if redis.call('HEXISTS', group(id), 'payload') == 0 then
        redis.call('HSET', group(id), 'rebuilt', 1)
      end
    end
  end
  redis.call('HSET', ledger(step), 'ids', table.concat(ids, ' '), 'digest', digest, 'state', 'trained')
  if number('next_step') <= step then redis.call('HSET', META, 'next_step', step + 1) end
end

-- Steps before `step` can never be handed out again: their ids stay, their payloads go.
local function free_before(step)
  local freed = 0
  for done = number('checkpoint_step'), step - 1 do
    for _, id in ipairs(ledger_ids(done)) do
      freed = freed + redis.call('UNLINK', group(id))
    end
  end
  if step > number('checkpoint_step') then redis.call('HSET', META, 'checkpoint_step', step) end
  return freed
end

