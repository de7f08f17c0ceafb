-- The demo's app: two tables of its own, and a handler in SQL.
CREATE SCHEMA demo;

CREATE TABLE demo.app_user (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text   NOT NULL
);

CREATE TABLE demo.file (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text   NOT NULL
);

-- Deliberately without a UNIQUE on event_id: a handler that ran twice would show as a second row.
CREATE TABLE demo.profile (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id bigint NOT NULL,
    name     text   NOT NULL
);

CREATE FUNCTION demo.create_profile(event outbox.event) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    profile_id bigint;
BEGIN
    IF event.payload ->> 'name' IS NULL THEN
        RETURN jsonb_build_object('outcome', 'dead', 'error', 'the payload has no "name"');
    END IF;
    INSERT INTO demo.profile (event_id, name) VALUES (event.id, event.payload ->> 'name') RETURNING id INTO profile_id;
    RETURN jsonb_build_object('profile', profile_id);
END
$$;
