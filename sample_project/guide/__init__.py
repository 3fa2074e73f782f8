"""The usual patterns of idempotent tasks, done right; docs/guide/ explains each."""
