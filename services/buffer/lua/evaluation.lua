-- Evaluations (docs/decisions/0006-evaluation.md). Shared by every script: Python puts it behind common.lua.
--
-- A label is a policy version as text (v4-9f2c1a), a problem a row of the data set, from 0; together they
-- are a group id (v4-9f2c1a-17), which no group of training can have.
--
--   evaluations       zset by version: labels of open evaluations. The first is under way, one more waits.
--   evaluated         zset by version: labels of those that ended
--   e:<label>         hash: number, lineage, problems, digest, began, ended, reason
--   e:<label>:queued  zset of problems by place
--   e:<label>:leased  zset of problems by expiry in ms
--   e:<label>:grants  hash: <problem> -> last attempt, <problem>.worker, <problem>.done -> attempt taken
--   e:<label>:done    hash: problem -> result
--   seats             hash: pods in the evaluation under way -> leases of it they hold
local E = settings.evaluation

local function evaluation(label) return PREFIX .. 'e:' .. label end
local function first_evaluation() return redis.call('ZRANGE', EVALUATIONS, 0, 0)[1] end
local function has_queued(label) return redis.call('ZCARD', evaluation(label) .. ':queued') > 0 end

local function problem_of(id) return string.match(id, '^(v%d+%-[0-9a-z]+)%-(%d+)$') end

local function pinned_policy(label)
  local policy = redis.call('HMGET', evaluation(label), 'number', 'lineage')
  return policy[1] or '', policy[2] or ''
end

local function pinned()
  local policies = {}
  for i, label in ipairs(redis.call('ZRANGE', EVALUATIONS, 0, -1)) do
    policies[i] = { pinned_policy(label) }
  end
  return policies
end

local function is_due(version) return E and (version % E.every_steps == 0 or version >= settings.steps) end

-- Whether a version was evaluated, is being, or waits for its turn: of whatever lineage.
local function is_known(version)
  return redis.call('ZCOUNT', EVALUATIONS, version, version) > 0
    or redis.call('ZCOUNT', EVALUATED, version, version) > 0
end

-- Adds the time since the last look if a pod held a lease of an evaluation then.
local function note_evaluating()
  local since = get('evaluating_since')
  if since then
    local seconds = math.max(0, NOW - tonumber(since)) / 1000
    redis.call('HINCRBYFLOAT', META, 'stat.seconds_evaluate', string.format('%.3f', seconds))
  end
  local label = first_evaluation()
  if label and redis.call('ZCARD', evaluation(label) .. ':leased') > 0 then
    redis.call('HSET', META, 'evaluating_since', NOW)
  elseif since then
    redis.call('HDEL', META, 'evaluating_since')
  end
end

-- A pod's lease ended. With none left the seat is free, unless the pod is to get more.
local function release_seat(worker, stays)
  if redis.call('HEXISTS', SEATS, worker) == 0 then return end
  if redis.call('HINCRBY', SEATS, worker, -1) <= 0 and not stays then redis.call('HDEL', SEATS, worker) end
end

local function holds_problem(label, problem, attempt)
  local key = evaluation(label)
  return redis.call('ZSCORE', key .. ':leased', problem)
    and tonumber(redis.call('HGET', key .. ':grants', problem) or 0) == attempt
end

local function end_problem(label, problem, stays)
  local key = evaluation(label)
  note_evaluating()
  redis.call('ZREM', key .. ':queued', problem)
  if redis.call('ZREM', key .. ':leased', problem) == 1 then
    local worker = redis.call('HGET', key .. ':grants', problem .. '.worker')
    release_seat(worker or '', stays and has_queued(label))
  end
  note_evaluating()
end

-- The pod is gone, hangs or drains: its seat goes to another. If it lives it takes the next free one.
local function requeue_problem(label, problem)
  end_problem(label, problem, false)
  redis.call('ZADD', evaluation(label) .. ':queued', tonumber(problem), problem)
end

local function leave_evaluations(label)
  local key = evaluation(label)
  if label == first_evaluation() then redis.call('DEL', SEATS) end
  note_evaluating()
  redis.call('ZREM', EVALUATIONS, label)
  redis.call('DEL', key .. ':queued', key .. ':leased')
  note_evaluating()
end

local function forget_evaluation(label)
  local key = evaluation(label)
  leave_evaluations(label)
  redis.call('ZREM', EVALUATED, label)
  redis.call('DEL', key, key .. ':grants', key .. ':done')
end

local function end_evaluation(label, reason)
  local key = evaluation(label)
  local left = redis.call('ZCARD', key .. ':queued') + redis.call('ZCARD', key .. ':leased')
  local version = redis.call('ZSCORE', EVALUATIONS, label)
  leave_evaluations(label)
  redis.call('HSET', key, 'ended', NOW, 'reason', reason)
  redis.call('ZADD', EVALUATED, version, label)
  count('total.evaluation_problems_dropped', left)
  count('total.evaluations_' .. (reason == '' and 'complete' or 'dropped'), 1)
end

-- Every version once. Of those that wait for their turn only the last matters.
local function open_evaluation(version, lineage)
  if not E or is_known(version) then return end
  local label = string.format('v%.0f-%s', version, lineage)
  local key = evaluation(label)
  for _, waiting in ipairs(redis.call('ZRANGE', EVALUATIONS, 1, -1)) do
    end_evaluation(waiting, string.format('v%.0f fell due before its turn came', version))
  end
  redis.call('HSET', key, 'number', version, 'lineage', lineage, 'problems', E.problems, 'digest', E.digest)
  for problem = 0, E.problems - 1 do redis.call('ZADD', key .. ':queued', problem, problem) end
  redis.call('ZADD', EVALUATIONS, version, label)
end

-- Versions after the checkpoint of a trainer that resumed are superseded, and with them what they gave.
local function supersede_evaluations(step)
  for _, index in ipairs({ EVALUATIONS, EVALUATED }) do
    for _, label in ipairs(redis.call('ZRANGEBYSCORE', index, string.format('(%.0f', step), '+inf')) do
      forget_evaluation(label)
    end
  end
end

-- The trainer has the results on disk: only the version stays. It may know more than Redis.
local function acknowledge_evaluation(version, lineage)
  for _, index in ipairs({ EVALUATIONS, EVALUATED }) do
    for _, label in ipairs(redis.call('ZRANGEBYSCORE', index, version, version)) do
      forget_evaluation(label)
    end
  end
  redis.call('ZADD', EVALUATED, version, string.format('v%.0f-%s', version, lineage))
end

-- Why the evaluation ends now: all done (''), its time is over, or it is another one than is wanted.
local function ended(label)
  local key = evaluation(label)
  local there = redis.call('HMGET', key, 'problems', 'began', 'digest')
  if not there[1] then return 'Redis has lost it' end
  if not E then return 'the config has no [evaluation] any more' end
  if there[3] ~= E.digest then return 'its data or sampling was changed' end
  local done = redis.call('HLEN', key .. ':done')
  if done == tonumber(there[1]) then return '' end
  if there[2] and NOW - tonumber(there[2]) > E.deadline_ms then
    return string.format('%d of %s problems were done when evaluation.deadline_seconds = %g had passed', done,
      there[1], E.deadline_ms / 1000)
  end
  return nil
end

-- Once nothing is trained any more only evaluations are waited for: their time runs, leased or not.
local function start_clock(label)
  if training_over() then redis.call('HSETNX', evaluation(label), 'began', NOW) end
end

local function sweep_evaluations()
  local label = first_evaluation()
  while label do
    for _, problem in ipairs(redis.call('ZRANGEBYSCORE', evaluation(label) .. ':leased', '-inf', NOW)) do
      requeue_problem(label, problem)
      count('total.leases_expired', 1)
    end
    start_clock(label)
    local reason = ended(label)
    if not reason then return end
    end_evaluation(label, reason)
    label = first_evaluation()
  end
end

local function sweep()
  expire_leases()
  sweep_evaluations()
end

-- How many pods may evaluate at a time.
local function seats() return math.max(1, math.floor(E.max_share * redis.call('ZCARD', SEEN))) end

-- The evaluation this pod takes part in, or nil. A free seat goes to a pod that has the policy; when the
-- policy is the newest no longer, no pod comes to it by itself, and the seat goes to whoever asks for work.
local function take_seat()
  local label = first_evaluation()
  if not label then return nil end
  if not has_queued(label) then
    if redis.call('HGET', SEATS, args.worker_id) == '0' then redis.call('HDEL', SEATS, args.worker_id) end
    return nil
  end
  if redis.call('HEXISTS', SEATS, args.worker_id) == 1 then return label end
  if args.max_prompts == 0 or redis.call('HLEN', SEATS) >= seats() then return nil end
  local version, lineage = pinned_policy(label)
  local is_newest = version == get('policy_number') and lineage == get('policy_lineage')
  if is_newest and (tonumber(version) ~= args.version or lineage ~= args.lineage) then return nil end
  redis.call('HSET', SEATS, args.worker_id, 0)
  return label
end

-- A problem for a pod with a seat, and the attempt; nil when it has another policy or none is left.
local function grant_problem(label)
  if not label then return nil end
  local version, lineage = pinned_policy(label)
  if tonumber(version) ~= args.version or lineage ~= args.lineage then return nil end
  local key = evaluation(label)
  local problem = redis.call('ZRANGE', key .. ':queued', 0, 0)[1]
  if not problem then return nil end
  note_evaluating()
  redis.call('ZREM', key .. ':queued', problem)
  redis.call('ZADD', key .. ':leased', NOW + settings.lease_ms, problem)
  local attempt = redis.call('HINCRBY', key .. ':grants', problem, 1)
  redis.call('HSET', key .. ':grants', problem .. '.worker', args.worker_id)
  redis.call('HINCRBY', SEATS, args.worker_id, 1)
  redis.call('HSETNX', key, 'began', NOW)
  count('total.leases_granted', 1)
  note_evaluating()
  return problem, attempt
end

