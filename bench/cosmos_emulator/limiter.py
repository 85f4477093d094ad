"""What one physical partition may spend: a budget of request units for each second of a clock that the caller holds.

A request is admitted while anything is left in the second, and its whole charge is taken afterwards; what it took too
much is missing in the next seconds, so that over time exactly the provisioned rate is admitted.
"""

from math import ceil, floor

BURST_LIMIT_RU = 3000.0
"""A partition that banks idle request units spends no more than these in a second, all together.

https://learn.microsoft.com/azure/cosmos-db/burst-capacity: only partitions below it bank any.
"""

BANKED_S = 300.0
"""So many seconds of idle throughput are kept, as the same page says."""


class Budget:
    """The spending of one partition in one region; times are seconds of any clock that does not go back."""

    __slots__ = ("_bank_ru", "_second", "_used_ru", "burst", "rate")

    def __init__(self, rate: float, *, burst: bool = False) -> None:
        self.rate = rate
        self.burst = burst
        self._second = -1
        self._used_ru = 0.0
        self._bank_ru = 0.0

    @property
    def _limit(self) -> float:
        if not self.burst or self.rate >= BURST_LIMIT_RU:
            return self.rate
        return self.rate + min(self._bank_ru, BURST_LIMIT_RU - self.rate)

    def provision(self, rate: float) -> None:
        """Change the rate; what was admitted by the old one is spent, and not owed by the new one."""
        owed = max(0.0, self._used_ru - self._limit)
        self.rate = rate
        self._used_ru = min(self._used_ru - owed, self._limit) + owed

    def wait_ms(self, now: float) -> int:
        """Return 0 where a request may run at *now*, else the milliseconds until a second with something left."""
        second = floor(now)
        if second > self._second:
            self._roll(second)
        missing = self._used_ru - self._limit
        if missing < 0:
            return 0
        seconds = floor(missing / self.rate) if self.rate else 0
        return max(1, ceil((self._second + 1 + seconds - now) * 1000))

    def charge(self, now: float, charge_ru: float) -> None:
        """Take what a request cost, whether or not it is still there."""
        second = floor(now)
        if second > self._second:
            self._roll(second)
        self._used_ru += charge_ru

    def left_ru(self, now: float) -> float:
        """Return what may still be spent in this second, without the bank."""
        if floor(now) > self._second:
            self._roll(floor(now))
        return max(0.0, self.rate - self._used_ru)

    def _roll(self, second: int) -> None:
        """Close the seconds before *second*: carry what is owed, bank what was idle."""
        if self._second >= 0:
            limit = self._limit
            owed = max(0.0, self._used_ru - limit)
            self._bank_ru += self.rate - min(self._used_ru, limit)
            idle = (second - self._second - 1) * self.rate
            paid = min(owed, idle)
            self._used_ru = owed - paid
            self._bank_ru = min(max(0.0, self._bank_ru + idle - paid), BANKED_S * self.rate)
        self._second = second
