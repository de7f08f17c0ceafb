-- Makes the roles that are missing, and gives all four their rights in this database. Result: one row without a meaning.
SELECT outbox.add_roles()
