//! A clock that a test moves, a disk that a test fills and a journal that a test reads, for a process of its own: a library in C, preloaded.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The library and what it reads, in a folder of the test.
pub(crate) struct Shim {
    library: PathBuf,
    clock: PathBuf,
    disk: PathBuf,
}

impl Shim {
    /// Compiles it. The clock is right and the disk has room.
    pub(crate) fn new(folder: &Path) -> Self {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/shim.c");
        let shim = Self { library: folder.join("shim.so"), clock: folder.join("clock"), disk: folder.join("disk") };
        let compiler = std::env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
        let output = std::process::Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([shim.library.as_os_str(), source.as_ref()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for path in [&shim.clock, &shim.disk] {
            std::fs::write(path, 0_i64.to_ne_bytes()).unwrap();
        }
        // The server may run as another account, whatever our umask is.
        for path in [&shim.library, &shim.clock, &shim.disk] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        shim
    }

    /// The environment of a process that is to have it.
    pub(crate) fn environment(&self) -> [(&str, &Path); 3] {
        [("LD_PRELOAD", &self.library), ("OUTBOXD_TEST_CLOCK", &self.clock), ("OUTBOXD_TEST_DISK", &self.disk)]
    }

    /// The environment of a process whose journal is this socket.
    pub(crate) fn journal<'a>(&'a self, socket: &'a Path) -> [(&'a str, &'a Path); 2] {
        [("LD_PRELOAD", &self.library), ("OUTBOXD_TEST_JOURNAL", socket)]
    }

    /// The wall clock goes wrong by so many seconds, at once.
    pub(crate) fn set_clock(&self, seconds: i64) {
        set(&self.clock, seconds);
    }

    /// No file can grow any more, or every file again.
    pub(crate) fn fill_disk(&self, full: bool) {
        set(&self.disk, full.into());
    }
}

/// In place: the file is mapped.
fn set(path: &Path, value: i64) {
    File::options().write(true).open(path).unwrap().write_all_at(&value.to_ne_bytes(), 0).unwrap();
}
