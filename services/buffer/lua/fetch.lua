#!lua flags=no-writes
-- The first payloads that fit args.max_bytes, at least one; false for one that is not there.
local payloads, size = {}, 0
for _, id in ipairs(args.ids) do
  size = size + redis.call('HSTRLEN', group(id), 'payload')
  if #payloads > 0 and size > args.max_bytes then break end
  payloads[#payloads + 1] = redis.call('HGET', group(id), 'payload') or ''
end
return payloads
