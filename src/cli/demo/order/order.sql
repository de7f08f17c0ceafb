-- The shop: what is on the shelves, what was ordered, and every movement of stock.
CREATE SCHEMA demo;

CREATE TABLE demo.article (
    id      integer PRIMARY KEY,
    -- What was there at the beginning, and what is there. Nothing can be sold that is not there.
    stocked integer NOT NULL,
    stock   integer NOT NULL CHECK (stock >= 0)
);

CREATE TABLE demo.customer_order (
    id      integer PRIMARY KEY,
    article integer NOT NULL REFERENCES demo.article,
    pieces  integer NOT NULL,
    cents   integer NOT NULL
);

-- Deliberately without a UNIQUE: a step that ran twice would show as a second row.
CREATE TABLE demo.movement (
    customer_order integer NOT NULL,
    pieces         integer NOT NULL
);

CREATE FUNCTION demo.lock_stock(event outbox.event, results jsonb) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    wanted demo.customer_order;
BEGIN
    SELECT * INTO wanted FROM demo.customer_order WHERE id = (event.payload->>'order')::integer;
    UPDATE demo.article SET stock = stock - wanted.pieces WHERE id = wanted.article AND stock >= wanted.pieces;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('outcome', 'dead', 'error', format('article %s is sold out', wanted.article));
    END IF;
    INSERT INTO demo.movement VALUES (wanted.id, -wanted.pieces);
    RETURN jsonb_build_object('pieces', wanted.pieces);
END
$$;

CREATE FUNCTION demo.unlock_stock(event outbox.event, results jsonb) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    wanted demo.customer_order;
BEGIN
    -- Nothing was locked: the shelf was empty.
    IF results->'stock'->>'pieces' IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT * INTO wanted FROM demo.customer_order WHERE id = (event.payload->>'order')::integer;
    UPDATE demo.article SET stock = stock + wanted.pieces WHERE id = wanted.article;
    INSERT INTO demo.movement VALUES (wanted.id, wanted.pieces);
    RETURN NULL;
END
$$;

-- What the third parties say at the end that they have done. `what` is charge, refund, parcel, cancelled parcel or message.
CREATE TABLE demo.party (
    what           text    NOT NULL,
    customer_order integer NOT NULL,
    times          integer NOT NULL
);
