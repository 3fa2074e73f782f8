"""Have the outbox's tables vacuumed and analysed by their traffic, not by the size of the history.

A message leaves two dead rows behind, and each an entry at the front of the index that every claim
reads. With PostgreSQL's defaults (a fifth of the table) a table of 5 million kept messages is
vacuumed after 500,000 further ones, and a claim that finds nothing has grown from 0.1 to 3 ms after
200,000 by then; with these it is after 50,000. Such a vacuum took 0.2 to 0.5 s on a table of a
million (1 GB, 2 cores, PostgreSQL 15 and 18), an ANALYZE 0.3 s.

Not a fixed number of rows: each vacuum reads every index of the table once, and of a hundred million
kept messages that should not happen every minute.

An ordering key leaves a dead row behind with each transaction that enqueues a message of it.
"""

from __future__ import annotations

from django.db import migrations

SET = """
ALTER TABLE {table} SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_analyze_threshold = 1000
)
"""

RESET = """
ALTER TABLE {table} RESET (
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold,
    autovacuum_analyze_scale_factor,
    autovacuum_analyze_threshold
)
"""


class Migration(migrations.Migration):
    dependencies = [("outbox", "0001_initial")]

    operations = [
        migrations.RunSQL(SET.format(table=table), RESET.format(table=table))
        for table in ("outbox_outboxmessage", "outbox_orderingkey")
    ]
