//! Roles that log in with the rights of others, and what they are refused.

use outboxd::postgres::{Session, Target};

use super::{Database, outboxd, url};

/// A role that can log in, a member of these, in a database that has the four.
pub(crate) struct Login<'a> {
    database: &'a Database,
    pub(crate) name: String,
}

impl<'a> Login<'a> {
    pub(crate) async fn new(database: &'a Database, name: &str, member_of: &[&str]) -> Self {
        let owner = database.session().await;
        let name = format!("{name}_{}", database.name());
        let grants: Vec<String> = member_of.iter().map(|role| format!("; GRANT {role} TO {name}")).collect();
        let create = format!("SELECT outbox.add_roles(); CREATE ROLE {name} LOGIN{}", grants.concat());
        owner.client.batch_execute(&create).await.unwrap();
        Self { database, name }
    }

    pub(crate) fn target(&self) -> Target {
        let mut config = self.database.target().config().clone();
        config.user(&self.name);
        Target::from_config(config, "a test")
    }

    pub(crate) async fn session(&self) -> Session {
        self.target().connect("test").await.unwrap()
    }

    pub(crate) fn url(&self) -> String {
        url(self.database).replace("outboxd@", &format!("{}@", self.name))
    }

    /// A verb, run as this role: exit code and what it printed.
    pub(crate) async fn runs(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = outboxd(None, arguments);
        let output = command.env("DATABASE_URL", self.url()).env("RUST_LOG", "error").output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// Roles belong to the cluster, which lives longer than the database.
    pub(crate) async fn drop(self) {
        let owner = self.database.session().await;
        owner.client.batch_execute(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)).await.unwrap();
    }
}

pub(crate) async fn refused(session: &Session, sql: &str) -> String {
    let error = session.client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    format!("{} {}", error.code().code(), error.message())
}

/// Each of these is refused for want of a right.
pub(crate) async fn all_refused(session: &Session, statements: &[&str]) {
    for statement in statements {
        let error = refused(session, statement).await;
        assert!(error.starts_with("42501 "), "{statement}: {error}");
    }
}
