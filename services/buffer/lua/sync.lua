#!lua flags=allow-oom
-- A write on the caller's own connection, so that the WAITAOF behind it covers the ledger as well.
redis.call('HSET', ledger(args.step), 'sync', 1)
return 0
