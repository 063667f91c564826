#!lua flags=allow-oom
-- Binds the run to its configuration. Returns the field that differs and what stands there, or nothing.
for _, field in ipairs({ 'config_digest', 'data_digest' }) do
  local there = get(field)
  if there and there ~= args[field] then return { field, there } end
end
redis.call('HSET', META, 'config_digest', args.config_digest, 'data_digest', args.data_digest)
return {}
