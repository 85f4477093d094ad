"""How often what was answered, and what was charged for it."""


class Counts:
    """Requests and their charges by operation and status; lives as long as the emulator."""

    def __init__(self) -> None:
        self.requests = dict[tuple[str, int], int]()
        self.charges_ru = dict[tuple[str, int], float]()

    def count(self, operation: str, status: int, charge_ru: float) -> None:
        """Count one answer."""
        key = operation, status
        self.requests[key] = self.requests.get(key, 0) + 1
        self.charges_ru[key] = self.charges_ru.get(key, 0.0) + charge_ru
