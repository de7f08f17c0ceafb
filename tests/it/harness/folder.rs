//! A folder in which a verb works that removes everything at its end, and the proof that it did.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::process::Command;

use super::{outboxd, until};

/// A temporary folder for one demo or bench.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outboxd-demo-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        // As /tmp: under root the server runs as somebody else, who must be able to enter and to remove what is his.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o1777)).unwrap();
        Self(path)
    }

    /// outboxd with this verb, which finds the folder where it makes temporary files.
    pub(crate) fn outboxd(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = outboxd(None, &[&[verb], arguments].concat());
        command.env("TMPDIR", &self.0);
        command
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().next().is_none()
    }

    /// Neither a file nor a process that has the folder in its arguments, as the server and its guard do.
    pub(crate) async fn nothing_is_left(&self) {
        assert!(self.is_empty(), "files are left in {}", self.0.display());
        self.nothing_runs().await;
    }

    pub(crate) async fn nothing_runs(&self) {
        let folder = self.0.to_str().unwrap();
        until("no process is left", async || {
            let output = Command::new("ps").args(["-eww", "-o", "stat=,args="]).output().await.unwrap();
            let list = String::from_utf8_lossy(&output.stdout).into_owned();
            !list.lines().any(|line| line.contains(folder) && !line.starts_with('Z'))
        })
        .await;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
