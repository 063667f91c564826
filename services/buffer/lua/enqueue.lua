#!lua
-- Queues the next prompts, unless another replica moved the cursor first. Returns how many are
-- queued now, or -1 when the cursor had moved.
-- An identity that exists already (a witness named it before the cursor came by) is passed over.
if number('epoch') ~= args.from[1] or number('position') ~= args.from[2] then return -1 end
local function exists(id)
  if redis.call('EXISTS', group(id)) == 1 or redis.call('ZSCORE', TRAINED, id) then return true end
  for _, why in ipairs(WHYS) do
    if redis.call('ZSCORE', dropped(why), id) then return true end
  end
  return false
end
for i, id in ipairs(args.ids) do
  if not exists(id) then
    redis.call('HSET', group(id), 'q', args.order + i - 1, 'attempt', 0)
    place(id, QUEUED, args.order + i - 1, 'queued')
    count('issued', 1)
  end
end
redis.call('HSET', META, 'epoch', args.to[1], 'position', args.to[2])
return redis.call('ZCARD', QUEUED)
