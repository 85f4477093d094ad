"""Connections: accepted, held to limits and time-outs, and admitted as long as what they ask is done in time."""
