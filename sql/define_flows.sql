-- Notes the definitions of flows, those that have changed as new versions. $1 jsonb: [{name, steps, on_dead_step}]
SELECT outbox.define_flow(w.name, w.steps, w.on_dead_step) FROM jsonb_to_recordset($1::jsonb) AS w (name text, steps jsonb, on_dead_step text)
