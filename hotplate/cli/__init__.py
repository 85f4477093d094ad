"""The command `hotplate`.

`main` finds the module of a verb. Modules of verbs (`publish`, `train`, …) declare options and help, and load quickly.
If the work of a verb needs heavy libraries, such as numpy, it is in a module such as `publish_work`, which the verb
imports when it is called. `flags` turns annotated fields into options, `options` declares those of several verbs,
`terminal` prints.
"""
