#!lua
-- Closes a lease of an evaluation with the result in ARGV[3]. Returns the disposition, or 'unknown', or
-- 'policy' and the policy under evaluation.
sweep()
local label, problem = problem_of(args.id)
local key = evaluation(label)
local grants = redis.call('HMGET', key .. ':grants', problem, problem .. '.done')
-- It ended and was fetched, or a trainer that resumed superseded it.
if redis.call('EXISTS', key) == 0 then return { 'expired' } end
if not grants[1] or args.attempt < 1 or args.attempt > tonumber(grants[1]) then return { 'unknown' } end
if grants[2] then return { tonumber(grants[2]) == args.attempt and 'evaluated' or 'duplicate' } end
if not redis.call('ZSCORE', EVALUATIONS, label) then return { 'expired' } end
if args.attempt < tonumber(grants[1]) then return { 'duplicate' } end
local version, lineage = pinned_policy(label)
if args.version ~= tonumber(version) or args.lineage ~= lineage then return { 'policy', version, lineage } end

redis.call('HSET', key .. ':done', problem, ARGV[3])
redis.call('HSET', key .. ':grants', problem .. '.done', args.attempt)
end_problem(label, problem, true)
sweep_evaluations()
return { 'evaluated' }
