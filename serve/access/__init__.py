"""Who may call: clients and their keys, tokens of an issuer, rates, and TLS."""
