#!lua flags=no-writes
-- Counts everything, and recounts the conservation error from the keys (invariant 1), as JSON.
-- Linear in the live groups and the steps, not in the groups ever trained.
local meta, fields = {}, redis.call('HGETALL', META)
for i = 1, #fields, 2 do meta[fields[i]] = fields[i + 1] end

local cards, identities = {}, 0
local indexes = { queued = QUEUED, leased = LEASED, ready = READY, batched = BATCHED, trained = TRAINED }
for _, why in ipairs(WHYS) do indexes['dropped_' .. why] = dropped(why) end
for name, index in pairs(indexes) do
  cards[name] = redis.call('ZCARD', index)
  identities = identities + cards[name]
end

local faults, payload_bytes, staleness = {}, 0, {}
local function fault(format, ...)
  if #faults < 100000 then faults[#faults + 1] = string.format(format, ...) end
end

-- A live group has its hash, the hash names its index, and no other index holds it.
local function check(id, name)
  local there = redis.call('HMGET', group(id), 'state', 'rebuilt')
  if there[1] ~= name then
    fault('%s is %s, its hash says %s', id, name, there[1] or 'nothing')
    return
  end
  for other, index in pairs(indexes) do
    if other ~= name and redis.call('ZSCORE', index, id) then fault('%s is %s and %s', id, name, other) end
  end
  local size = redis.call('HSTRLEN', group(id), 'payload')
  payload_bytes = payload_bytes + size
  local sampled = name == 'ready' or name == 'batched' or name == 'trained'
  if sampled and size == 0 and not there[2] then fault('%s is %s without a payload', id, name) end
  if name == 'leased' and not redis.call('ZSCORE', OPEN, id) then fault('%s is leased but not open', id) end
end
for _, name in ipairs({ 'queued', 'leased', 'ready', 'batched' }) do
  for _, id in ipairs(redis.call('ZRANGE', indexes[name], 0, -1)) do check(id, name) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', TRAINED, number('checkpoint_step'), '+inf')) do
  check(id, 'trained')
end

-- A step has its ledger, and its groups are where the ledger says.
for step = 0, number('next_step') - 1 do
  local held = redis.call('ZCOUNT', TRAINED, step, step) + redis.call('ZCOUNT', BATCHED, step, step)
  if redis.call('EXISTS', ledger(step)) == 0 then fault('step %d has no ledger', step) end
  if held ~= N then fault('step %d holds %d groups', step, held) end
end
if cards.leased ~= open() then fault('%d leases, %d of them open', cards.leased, open()) end

-- Evaluations, apart: a problem of an open one is in exactly one place.
local places, lost = { queued = 0, leased = 0, done = 0 }, 0
for _, label in ipairs(redis.call('ZRANGE', EVALUATIONS, 0, -1)) do
  local key = evaluation(label)
  local found = {
    queued = redis.call('ZRANGE', key .. ':queued', 0, -1),
    leased = redis.call('ZRANGE', key .. ':leased', 0, -1),
    done = redis.call('HKEYS', key .. ':done'),
  }
  local times = {}
  for place, problems in pairs(found) do
    places[place] = places[place] + #problems
    for _, problem in ipairs(problems) do times[problem] = (times[problem] or 0) + 1 end
  end
  local header = tonumber(redis.call('HGET', key, 'problems'))
  if not header then lost = lost + 1 end
  for problem = 0, (header or 0) - 1 do
    if times[tostring(problem)] ~= 1 then lost = lost + 1 end
  end
end

local missing = math.abs(number('issued') - identities)
if missing > 0 then fault('%d identities were issued, %d are found', number('issued'), identities) end
return cjson.encode({
  meta = meta, cards = cards, state = state(), end_reason = end_reason(),
  capacity = room(number('policy_number')), payload_bytes = payload_bytes, workers = live_workers(),
  evaluating = first_evaluation() and { pinned_policy(first_evaluation()) } or nil,
  evaluation_problems = places, evaluation_pods = redis.call('HLEN', SEATS), evaluation_error = lost,
  conservation_error = math.max(missing, #faults), faults = { unpack(faults, 1, math.min(5, #faults)) },
})
