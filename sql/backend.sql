-- Which server process serves this statement. Two different answers on one session: a pooler hands it around.
SELECT pg_backend_pid()
