-- Everything since a moment: what was ordered, what became of it, and how often it was delivered.
WITH orders AS (
    SELECT placed.id,
           (SELECT count(*) FROM shop_receipt WHERE order_id = placed.id) AS receipts,
           (SELECT count(*) FROM shop_payment WHERE order_id = placed.id) AS payments
      FROM shop_order AS placed
     WHERE placed.created_at >= %(since)s
),
messages AS (
    SELECT message.id,
           message.status,
           message.published_at,
           message.redeliveries,
           count(delivery.id) AS deliveries,
           count(delivery.id) FILTER (WHERE delivery.outcome = 'suppressed') AS suppressed
      FROM outbox_outboxmessage AS message
      LEFT JOIN demo_delivery AS delivery ON delivery.message_id = message.id::text
     WHERE message.created_at >= %(since)s
       AND message.task LIKE 'sample_project.shop.%%'
     GROUP BY message.id
)
SELECT orders.*, messages.*
  FROM (SELECT count(*)::int AS orders,
               coalesce(sum(receipts), 0)::int AS receipts,
               coalesce(sum(payments), 0)::int AS payments,
               (count(*) FILTER (WHERE receipts = 0)
                + count(*) FILTER (WHERE payments = 0))::int AS lost,
               coalesce(sum(greatest(receipts - 1, 0) + greatest(payments - 1, 0)), 0)::int
                   AS doubled
          FROM orders) AS orders,
       (SELECT count(*)::int AS messages,
               count(published_at)::int AS published,
               count(*) FILTER (WHERE status = 'executed')::int AS executed,
               coalesce(sum(redeliveries), 0)::int AS redelivered,
               coalesce(sum(deliveries), 0)::int AS deliveries,
               coalesce(min(deliveries), 0)::int AS fewest_deliveries,
               coalesce(sum(suppressed), 0)::int AS suppressed
          FROM messages) AS messages
