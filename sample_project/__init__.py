"""A small shop that uses both apps, and the demo that runs it."""
