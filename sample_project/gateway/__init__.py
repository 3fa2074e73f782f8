"""A payment gateway as one finds them outside: HTTP, its own ledger, its own keys, bad days."""
