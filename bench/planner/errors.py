"""What can go wrong with a plan: it was asked for something that makes no sense."""


class PlanMisused(ValueError):
    """An input is missing, unknown or out of range; the sentence names the flag or the key."""
