"""Items that users consumed, which are hidden from their lists, also in other services of a shop."""
