"""The demo: the shop under repeated deliveries and killed processes, and a ledger that says so."""
