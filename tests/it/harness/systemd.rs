//! The socket on which systemd listens.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;

use super::until;

pub(crate) struct NotifySocket {
    path: PathBuf,
    heard: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl NotifySocket {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outboxd-notify-{}-{number}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                kept.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Self { path, heard, task }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Every line heard so far, in order.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().flat_map(|message| message.lines()).map(ToOwned::to_owned).collect()
    }

    /// Waits until a line has been heard so often.
    #[track_caller]
    pub(crate) fn heard(&self, line: &str, times: usize) -> impl Future<Output = ()> {
        until(&format!("systemd hears {line:?} {times} times"), move || {
            let count = self.lines().iter().filter(|heard| *heard == line).count();
            async move { count >= times }
        })
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}
