"""The driver over the wire protocol: signed requests on kept connections, regions learnt from the account."""
