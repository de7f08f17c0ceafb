//! Connection settings as libpq's clients write them: a url, `keyword=value` pairs, `PG*` variables, a service file.
//!
//! tokio-postgres reads only the first two, and refuses parameters that psql accepts. Everything becomes libpq keywords
//! here, and only then a [`tokio_postgres::Config`]. An error is one line; it never repeats a value, which may be a
//! password in the wrong place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::account::Account;
use super::{pgpass, tls};

/// libpq's keywords and their values; none of the values is empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Settings(BTreeMap<String, String>);

/// The environment, so that a test can bring its own.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// libpq's variables that mean something here. `PGAPPNAME` does not: the sessions of outboxd tell their role.
const VARIABLES: [(&str, &str); 17] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGSERVICE", "service"),
    ("PGPASSFILE", "passfile"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGOPTIONS", "options"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
];

/// Variables that by themselves say that PostgreSQL is to be found through the environment.
const PLACES: [&str; 7] = ["host", "hostaddr", "port", "dbname", "user", "password", "service"];

/// Where Debian, PGDG and most distributions put the server's socket, and where PostgreSQL itself does.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

impl Settings {
    /// Reads a url or `keyword=value` pairs.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // A credential that comes from a file ends with a newline.
        let text = text.trim();
        match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
            Some(rest) => Self::parse_url(rest),
            None if text.contains('=') => Self::parse_pairs(text),
            None => Err("it is neither a postgresql:// url nor keyword=value pairs".into()),
        }
    }

    pub(super) fn from_env(env: Env<'_>) -> Self {
        let mut settings = Self::default();
        for (variable, keyword) in VARIABLES {
            settings.set(keyword, env(variable).unwrap_or_default());
        }
        settings
    }

    /// Whether they say where PostgreSQL is or who connects, not only how.
    pub(super) fn name_a_place(&self) -> bool {
        PLACES.iter().any(|keyword| self.0.contains_key(*keyword))
    }

    /// Fills in what is missing, in libpq's order: the service file, then the environment, then the defaults. Returns the
    /// settings, and a warning for a password file that is not used.
    pub(super) fn complete(mut self, env: Env<'_>) -> Result<(Self, Option<String>), String> {
        let environment = Self::from_env(env);
        if let Some(service) = self.0.remove("service").or_else(|| environment.0.get("service").cloned()) {
            self.fill(Self::from_service(&service, env)?);
        }
        self.fill(environment);
        self.0.remove("service");
        if !self.0.contains_key("host") && !self.0.contains_key("hostaddr") {
            let port = self.0.get("port").map_or("5432", String::as_str);
            self.set("host", local_socket(port).to_owned());
        }
        if !self.0.contains_key("user") {
            let user = Account::current().map(|account| account.name).or_else(|| env("USER").filter(|u| !u.is_empty()));
            self.set("user", user.ok_or("no user is named, and this process's own account has no name")?);
        }
        if let (false, Some(user)) = (self.0.contains_key("dbname"), self.0.get("user").cloned()) {
            self.set("dbname", user);
        }
        let warning = self.look_up_password(env)?;
        Ok((self, warning))
    }

    /// The settings as tokio-postgres takes them, what they say of TLS, and the bound on connecting if one was given.
    pub(super) fn into_config(
        mut self,
        env: Env<'_>,
    ) -> Result<(tokio_postgres::Config, Option<tls::Wanted>, Option<Duration>), String> {
        let tls = self.take_tls(env)?;
        let bound = match self.0.remove("connect_timeout").map(|seconds| seconds.trim().parse::<i64>()) {
            None => None,
            Some(Err(_)) => return Err("connect_timeout is not a number of seconds".into()),
            // libpq: zero, negative and absent all mean no bound of its own.
            Some(Ok(seconds)) => u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs),
        };
        // The TCP settings and the name are outboxd's own; text always travels as UTF-8.
        for keyword in ["application_name", "fallback_application_name", "client_encoding", "gssencmode", "keepalives"]
        {
            self.0.remove(keyword);
        }
        for keyword in ["keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"] {
            self.0.remove(keyword);
        }
        let mut pairs = String::new();
        for (keyword, value) in &self.0 {
            if value.contains('\0') {
                return Err(format!("{keyword} holds a NUL character"));
            }
            let value = value.replace('\\', r"\\").replace('\'', r"\'");
            pairs.extend([keyword, "='", &value, "' "]);
        }
        let config = pairs.parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            cause.unwrap_or_else(|| error.to_string())
        })?;
        Ok((config, tls, bound))
    }

    /// Takes out what is said of TLS; `None`: there is none. `allow` and `prefer` ask for nothing that could be relied on, so they are off.
    fn take_tls(&mut self, env: Env<'_>) -> Result<Option<tls::Wanted>, String> {
        let mode = self.0.remove("sslmode");
        let taken = ["sslrootcert", "sslcert", "sslkey"].map(|keyword| self.0.remove(keyword));
        let unknown = self.0.keys().find(|keyword| keyword.starts_with("ssl") && *keyword != "sslnegotiation");
        if let Some(keyword) = unknown {
            return Err(format!("{keyword} is given, which this version of outboxd does not know"));
        }
        if self.0.get("gssencmode").is_some_and(|mode| mode == "require") {
            return Err("gssencmode=require is asked for, and outboxd has no GSSAPI".into());
        }
        let asks =
            |settings: &Self, keyword: &str, value: &str| settings.0.get(keyword).is_some_and(|given| given == value);
        let any_name = match mode.as_deref() {
            Some("require" | "verify-full") => false,
            Some("verify-ca") => true,
            Some("disable" | "allow" | "prefer") | None => {
                for (keyword, value) in [("channel_binding", "require"), ("sslnegotiation", "direct")] {
                    if asks(self, keyword, value) {
                        return Err(format!(
                            "{keyword}={value} is asked for without TLS: say sslmode=verify-full, too"
                        ));
                    }
                }
                if taken.iter().any(Option::is_some) && mode.is_none() {
                    return Err("certificates are given without sslmode: say sslmode=verify-full, too".into());
                }
                self.set("sslmode", "disable".into());
                return Ok(None);
            }
            Some(_) => return Err("sslmode is not one libpq knows".into()),
        };
        self.set("sslmode", if self.is_local() { "disable" } else { "require" }.into());
        let [roots, certificate, key] = taken;
        let (certificate, key) = (certificate.map(PathBuf::from), key.map(PathBuf::from));
        Ok(Some(tls::Wanted {
            any_name,
            roots,
            certificate,
            key,
            home: env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from),
        }))
    }

    /// Whether every host is a local socket, over which there is no TLS.
    fn is_local(&self) -> bool {
        let hosts = self.0.get("host").map_or("", String::as_str);
        !self.0.contains_key("hostaddr") && hosts.split(',').all(|host| host.starts_with('/'))
    }

    /// An empty value means the same as none, as it does for libpq. The first of two values of one layer is overwritten.
    fn set(&mut self, keyword: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(keyword.to_owned(), value);
        }
    }

    fn fill(&mut self, mut from: Self) {
        // Host and address belong together: one layer's address must not go with another layer's host.
        if self.0.contains_key("host") || self.0.contains_key("hostaddr") {
            from.0.remove("host");
            from.0.remove("hostaddr");
        }
        for (keyword, value) in from.0 {
            self.0.entry(keyword).or_insert(value);
        }
    }

    fn parse_url(rest: &str) -> Result<Self, String> {
        const UNESCAPED: &str =
            "its user name or password holds a character that has to be percent-encoded (one of @ / ? #)";
        let mut settings = Self::default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        if database.contains('@') {
            return Err(UNESCAPED.into());
        }
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        settings.set("user", decoded(user, "user name")?);
        settings.set("password", decoded(password, "password")?);
        settings.set("dbname", decoded(database, "database name")?);
        settings.set_hosts(hosts)?;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (keyword, value) = parameter.split_once('=').ok_or("a parameter in it has no value")?;
            let known = keyword.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            // Not a keyword: more likely the rest of a password with a question mark in it.
            settings.set(if known { keyword } else { return Err(UNESCAPED.into()) }, decoded(value, keyword)?);
        }
        Ok(settings)
    }

    fn set_hosts(&mut self, hosts: &str) -> Result<(), String> {
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((address, "")) => (address, ""),
                Some((address, port)) => (address, port.strip_prefix(':').ok_or("it has text after an IPv6 address")?),
                None => host.split_once(':').unwrap_or((host, "")),
            };
            names.push(decoded(name, "host")?);
            if !port.bytes().all(|b| b.is_ascii_digit()) {
                return Err("a port in it is not a number".into());
            }
            ports.push(port);
        }
        self.set("host", if names.iter().all(String::is_empty) { String::new() } else { names.join(",") });
        self.set("port", if ports.iter().all(|port| port.is_empty()) { String::new() } else { ports.join(",") });
        Ok(())
    }

    fn parse_pairs(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let (keyword, after) = rest.split_once('=').ok_or("it has a keyword without a value")?;
            let keyword = keyword.trim_end();
            if keyword.is_empty() || !keyword.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                return Err("it has a keyword without a value, or a value with blanks and no quotes".into());
            }
            let (value, after) = quoted_value(after.trim_start())?;
            settings.set(keyword, value);
            rest = after.trim_start();
        }
        Ok(settings)
    }

    /// A section of the service file: <https://www.postgresql.org/docs/current/libpq-pgservice.html>.
    fn from_service(service: &str, env: Env<'_>) -> Result<Self, String> {
        let own = env("PGSERVICEFILE").map(PathBuf::from).or_else(|| home(env, ".pg_service.conf"));
        let shared = env("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into());
        let files = [own, Some(Path::new(&shared).join("pg_service.conf"))];
        for file in files.into_iter().flatten() {
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("cannot read the service file {}: {error}", file.display())),
            };
            if let Some(settings) =
                section(&text, service).map_err(|e| format!("service file {}: {e}", file.display()))?
            {
                return Ok(settings);
            }
        }
        Err(format!("service {service:?} is in no service file"))
    }

    fn look_up_password(&mut self, env: Env<'_>) -> Result<Option<String>, String> {
        let given = self.0.remove("passfile").map(PathBuf::from);
        if self.0.contains_key("password") {
            return Ok(None);
        }
        let Some(path) = given.or_else(|| home(env, ".pgpass")) else { return Ok(None) };
        let file = match pgpass::read(&path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            Err(warning) => return Ok(Some(warning)),
        };
        let get = |keyword: &str| self.0.get(keyword).map_or("", String::as_str);
        let hosts: Vec<&str> = if get("host").is_empty() { get("hostaddr") } else { get("host") }.split(',').collect();
        let ports: Vec<&str> = get("port").split(',').collect();
        let mut found = hosts.iter().enumerate().map(|(at, host)| {
            // libpq: the default socket is called localhost in this file.
            let host = if SOCKET_FOLDERS.contains(host) { "localhost" } else { host };
            let port = ports.get(at).or(ports.first()).filter(|port| !port.is_empty()).copied().unwrap_or("5432");
            pgpass::password(&file, pgpass::Wanted { host, port, database: get("dbname"), user: get("user") })
        });
        let password = found.next().flatten();
        // The driver knows one password for all hosts; the one meant for another host must not be sent to this one.
        if found.any(|other| other != password) {
            return Err(format!("password file {} has different passwords for these hosts", path.display()));
        }
        self.set("password", password.unwrap_or_default());
        Ok(None)
    }
}

fn home(env: Env<'_>, file: &str) -> Option<PathBuf> {
    env("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(file))
}

fn local_socket(port: &str) -> &'static str {
    let socket = format!(".s.PGSQL.{port}");
    SOCKET_FOLDERS.into_iter().find(|folder| Path::new(folder).join(&socket).exists()).unwrap_or(SOCKET_FOLDERS[0])
}

fn section(text: &str, service: &str) -> Result<Option<Settings>, String> {
    let mut found: Option<Settings> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            found = (name == service).then(Settings::default);
        } else if let Some(settings) = &mut found {
            let (keyword, value) = line.split_once('=').ok_or("a line is not keyword=value")?;
            // The first of two lines counts in a service file.
            if !settings.0.contains_key(keyword.trim_end()) {
                settings.set(keyword.trim_end(), value.trim_start().to_owned());
            }
        }
    }
    Ok(found)
}

/// A value of a `keyword=value` list and what follows it.
fn quoted_value(text: &str) -> Result<(String, &str), String> {
    let (quoted, body) = text.strip_prefix('\'').map_or((false, text), |body| (true, body));
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            _ if !quoted && c.is_whitespace() => return Ok((value, &body[at..])),
            _ => value.push(c),
        }
    }
    if quoted { Err("it has a quote that is not closed".into()) } else { Ok((value, "")) }
}

/// Percent-decoding. `what` names the part of the url for the error.
fn decoded(text: &str, what: &str) -> Result<String, String> {
    let broken = || format!("the {what} in it is not valid percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let digits = rest.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit)).ok_or_else(broken)?;
            let digits = str::from_utf8(digits).map_err(|_| broken())?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| broken())?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).map_err(|_| broken())
}
