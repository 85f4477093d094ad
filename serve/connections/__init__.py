"""Connections, their limits, the fast lane, and admission."""
