//! Accounts of the operating system, as `/etc/passwd` lists them.

use std::fs;

/// One line of `/etc/passwd`, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The account this process runs as. `None` where accounts come from elsewhere (LDAP, an arbitrary uid in a container).
    pub(super) fn current() -> Option<Self> {
        let uid = rustix::process::geteuid().as_raw();
        all().into_iter().find(|account| account.uid == uid)
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        all().into_iter().find(|account| account.name == name)
    }
}

fn all() -> Vec<Account> {
    fs::read_to_string("/etc/passwd").map_or_else(|_| Vec::new(), |text| text.lines().filter_map(line).collect())
}

fn line(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { name, uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_name_uid_and_gid() {
        let account = Account { name: "postgres".into(), uid: 101, gid: 104 };
        assert_eq!(line("postgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash"), Some(account));
        assert_eq!(line("+::::::"), None);
        assert_eq!(line(""), None);
    }
}
