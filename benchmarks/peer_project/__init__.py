"""A Django project for the peers, run by their own environment's Python; we import none of it."""
