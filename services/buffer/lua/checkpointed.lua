#!lua flags=allow-oom
-- Steps before args.step are safe on disk. Returns {'ok', groups freed} or {'refused', sentence}.
if args.step > number('policy_number') then
  return { 'refused', string.format('checkpoint_step %d lies beyond the policy v%d', args.step,
    number('policy_number')) }
end
return { 'ok', free_before(args.step) }
