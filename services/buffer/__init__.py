"""The buffer: prompts, leases, dynamic sampling, staleness, batches and their ledger.

Stateless over Redis: two replicas are as right as one. Every change of state is one Lua script in
`lua/`.

    rollout ── LeasePrompts / SubmitGroup ──►  server ──► store ──► lua/*.lua ──► Redis
    trainer ── NextBatch / CommitStep ──────►     │
                                               prompts (rows in seeded order, tokenised once)
"""
