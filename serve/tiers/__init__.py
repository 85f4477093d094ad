"""Tiers: stores in reading order, and reads over them."""
