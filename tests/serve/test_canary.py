"""A canary beside the live release: who sees it, that no answer mixes the two, and when a process stops using it."""



