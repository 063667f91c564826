"""`dapod evaluate`: a model's answers to a data set, judged and counted, without training.

    arguments ─► request (config and model) ─► problems ─► runner ─► report
                                                            │  └► output: problems.jsonl, …
             reward ◄── Score ── asking: threads ── Generate ──► engine (services.rollout.serve)

What can be counted is in `dapod.evaluation`. Evaluation during a run is the buffer's business.
"""
