#!lua
-- Closes a lease with its result; what the group is and whether it is kept (dynamic sampling,
-- section 3.2) was decided by the caller. Called submit_dropped for a group that is not kept.
-- Returns the disposition, or 'unknown', or 'policy' and the policy the lease was granted for.
-- ARGV[3] is the payload.
local id, attempt, key = args.id, args.attempt, group(args.id)
sweep()

local function duplicate()
  count('total.duplicate', 1)
  return { 'duplicate' }
end

local there = redis.call('HMGET', key, 'state', 'attempt', 'version', 'lineage', 'order', 'payload',
  'disposition')
if not there[1] then
  -- The group is closed and its hash gone: dropped, or trained before the checkpoint.
  for _, why in ipairs(WHYS) do
    local accepted = redis.call('ZSCORE', dropped(why), id)
    if accepted and tonumber(accepted) == attempt then return { why } end
    if accepted then return duplicate() end
  end
  if redis.call('ZSCORE', TRAINED, id) then return duplicate() end
  return { 'unknown' }
end
if attempt < 1 or attempt > tonumber(there[2]) then return { 'unknown' } end
if there[1] ~= 'queued' and there[1] ~= 'leased' then
  if attempt == tonumber(there[2]) and there[6] then return { there[7] } end
  return duplicate()
end
if attempt < tonumber(there[2]) then return duplicate() end
if args.version ~= tonumber(there[3]) or args.lineage ~= there[4] then
  return { 'policy', there[3], there[4] }
end
if there[1] == 'queued' then
  -- Late. Its slot may have been granted again: taken only if the grant rule would still grant it.
  if room(args.version) <= 0 then
    count('total.expired', 1)
    return { 'expired' }
  end
  count('leases_this_step', 1)
end

if args.keep then
  leave(id)
  redis.call('HSET', key, 'payload', ARGV[3], 'sha256', args.sha256, 'lengths', args.lengths,
    'prompt_tokens', args.prompt_tokens, 'disposition', args.disposition)
  make_ready(id)
else
  drop(id, args.disposition)
end
count('total.' .. args.disposition, 1)
count('stat.groups_' .. args.disposition, 1)
for name, value in pairs(args.counts) do count('stat.' .. name, value) end
redis.call('HINCRBYFLOAT', META, 'stat.reward_sum', args.reward_sum)
return { args.disposition }
