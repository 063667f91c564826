#!lua flags=allow-oom
-- Frees the results that the trainer has (args.evaluated) and returns those of one evaluation that it has
-- not: {open evaluations, what they wait for, number, lineage, problems, reason, ms, {result, ...}, next}.
sweep()
for _, one in ipairs(args.evaluated) do
  if redis.call('EXISTS', evaluation(string.format('v%.0f-%s', one[1], one[2]))) == 1
    or not is_known(one[1]) then
    acknowledge_evaluation(one[1], one[2])
  end
end

local function waiting_for()
  local label = first_evaluation()
  if not label then return '' end
  local key = evaluation(label)
  return string.format('%s: %d of %s problems evaluated, %d being sampled by %d pods', label,
    redis.call('HLEN', key .. ':done'), redis.call('HGET', key, 'problems'),
    redis.call('ZCARD', key .. ':leased'), redis.call('HLEN', SEATS))
end

-- The results from args.first_problem on that fit args.max_bytes, at least one; and the problem to go on with,
-- or nothing.
local function page(key, problems)
  local results, size = {}, 0
  for problem = args.first_problem, problems - 1 do
    local result = redis.call('HGET', key .. ':done', problem)
    size = size + #(result or '')
    if #results > 0 and size > args.max_bytes then return results, problem end
    if result then results[#results + 1] = result end
  end
  return results
end

local reply = { redis.call('ZCARD', EVALUATIONS), waiting_for() }
for _, label in ipairs(redis.call('ZRANGE', EVALUATED, 0, -1)) do
  local key = evaluation(label)
  local there = redis.call('HMGET', key, 'number', 'lineage', 'problems', 'reason', 'began', 'ended')
  if there[1] then
    for i = 1, 4 do reply[2 + i] = there[i] end
    reply[7] = string.format('%.0f', there[5] and there[6] - there[5] or 0)
    reply[8], reply[9] = page(key, tonumber(there[3]))
    return reply
  end
end
return reply
