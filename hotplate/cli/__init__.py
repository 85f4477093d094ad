"""The command `hotplate`.

`main` finds the module of a verb. Modules of verbs (`publish`, `train`, …) declare options and help, and load quickly.
The work of a verb that needs more is in another module, which it imports when it is called: `publishing`, `training`,
`evaluating`, `pipelines` (of `run`), `erasing` (of `users`), `event_reports`, `demonstration` (of `demo`), `spending`
(of `bench`). `flags` turns annotated fields into options, `options` declares those of several verbs, `terminal` prints.
"""
