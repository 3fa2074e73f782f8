"""Faults in real processes: kill, pause and cut; then an audit of what is left, by SQL alone.

An app of its own (``tests.faults.settings``), so that a relay or worker that a test starts can be
told by its environment to stop itself at a named point, or to have a named bug.
"""
