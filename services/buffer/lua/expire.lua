#!lua flags=allow-oom
-- Requeues the prompts of leases that ran out.
sweep()
return 0
