//! Where PostgreSQL's server programs are installed.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const NOT_FOUND: &str = "PostgreSQL's server binaries were not found; install them (Debian and Ubuntu: apt-get install \
                         postgresql) or set OUTBOXD_PG_BIN to the folder that holds initdb and postgres";

/// Folders with one folder per version in them, the part of its name before the version, and what follows it: Debian,
/// PGDG's RPMs, Homebrew on Apple silicon and on Intel.
const VERSIONED: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];

/// A folder that holds initdb and postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries(PathBuf);

impl Binaries {
    /// `OUTBOXD_PG_BIN` and nothing else if it is set; without it `PATH`, `pg_config`, and where packages put them. The
    /// error is one line.
    pub(super) fn find(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        if let Some(folder) = env("OUTBOXD_PG_BIN").filter(|folder| !folder.is_empty()) {
            let folder = PathBuf::from(folder);
            return Self::in_folder(&folder).ok_or_else(|| {
                format!(
                    "OUTBOXD_PG_BIN is {}, but initdb and postgres are not both there; install PostgreSQL's server \
                     (Debian and Ubuntu: apt-get install postgresql), or name the folder that holds them",
                    folder.display()
                )
            });
        }
        let path = env("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
        in_path
            .chain(std::iter::once_with(pg_config).flatten())
            .chain(VERSIONED.into_iter().flat_map(|(parent, prefix, bin)| newest_first(Path::new(parent), prefix, bin)))
            .find_map(|folder| Self::in_folder(&folder))
            .ok_or_else(|| NOT_FOUND.into())
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let both = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
        // Links in PATH lead to the installation, and only there are the programs sure to belong together.
        let real = fs::canonicalize(folder.join("postgres")).ok();
        let real = real.as_deref().and_then(Path::parent).filter(|real| both(real));
        real.or(Some(folder)).filter(|folder| both(folder)).map(|folder| Self(folder.to_owned()))
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.0.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }

    /// Root runs them as another account, which may have no way to them. The error is one line.
    pub(super) fn usable_by_others(&self, account: &str) -> Result<(), String> {
        [self.initdb(), self.postgres()].iter().find_map(|program| closed_to_others(program)).map_or(Ok(()), |closed| {
            Err(format!(
                "as root, PostgreSQL runs as {account}, who may not enter {}: run as an ordinary user, or set \
                 OUTBOXD_PG_BIN to binaries that everybody may run",
                closed.display()
            ))
        })
    }
}

/// The first part of an absolute path that not everybody may enter or run.
pub(super) fn closed_to_others(path: &Path) -> Option<PathBuf> {
    let mut parts: Vec<&Path> = path.ancestors().collect();
    parts.reverse();
    let closed = |part: &Path| fs::metadata(part).map_or(true, |found| found.permissions().mode() & 0o001 == 0);
    parts.into_iter().find(|part| closed(part)).map(Path::to_owned)
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok().filter(|output| output.status.success())?;
    let folder = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(folder.trim_end()))
}

/// `<parent>/<prefix><version>/<bin>` for every version there is.
fn newest_first(parent: &Path, prefix: &str, bin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).map_or_else(|_| Vec::new(), |entries| entries.flatten().collect());
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .iter()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?;
            // Numbers, not text: 9.6 is older than 10.
            let version = version.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
            Some((version, entry.path().join(bin)))
        })
        .collect();
    found.sort_by_key(|(version, _)| Reverse(version.clone()));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_and_the_newest_comes_first() {
        let parent = std::env::temp_dir().join(format!("outboxd-versions-{}", std::process::id()));
        for name in ["pg9.6", "pg10", "pg18", "pg17", "pgAdmin", "18"] {
            fs::create_dir_all(parent.join(name)).unwrap();
        }
        let found = newest_first(&parent, "pg", "bin");
        fs::remove_dir_all(&parent).unwrap();
        let wanted = ["pg18", "pg17", "pg10", "pg9.6"].map(|name| parent.join(name).join("bin"));
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_program_below_a_closed_folder_is_closed_and_the_folder_is_named() {
        let parent = std::env::temp_dir().join(format!("outboxd-closed-{}", std::process::id()));
        fs::create_dir_all(parent.join("bin")).unwrap();
        let open_then_closed = [0o755, 0o700].map(|mode| {
            fs::set_permissions(&parent, fs::Permissions::from_mode(mode)).unwrap();
            closed_to_others(&parent.join("bin"))
        });
        fs::remove_dir_all(&parent).unwrap();
        assert_eq!(open_then_closed, [None, Some(parent)]);
    }

    #[test]
    fn a_folder_that_is_named_is_the_only_one_looked_at() {
        let error = Binaries::find(&|name| (name == "OUTBOXD_PG_BIN").then(|| "/nowhere".into())).unwrap_err();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
