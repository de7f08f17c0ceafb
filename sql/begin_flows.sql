-- Gives instances of flows their rows, and moves them on: see outbox.begin_flow. $1 bigint[] event ids, $2 text[] flows
SELECT outbox.begin_flow(s.event_id, s.flow) FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS s (event_id, flow, place) ORDER BY s.place
