//! The progress bar: on a terminal only, on standard error.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over a number of bytes. Cheap to clone; threads share it.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar, or nothing at all if it is not `shown` or standard error is no terminal.
    pub fn new(shown: bool, doing: &'static str, total: u64) -> Self {
        if !shown {
            return Self {
                bar: ProgressBar::hidden(),
            };
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let template = "{prefix} [{wide_bar}] {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} \
                        left {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(doing);
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar }
    }

    /// A line that says what is being done, and with [`Progress::message`] how far it is; nothing at all if
    /// it is not `shown`.
    pub fn counting(shown: bool, doing: &'static str) -> Self {
        let progress = Self::new(shown, doing, 0);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {msg}") {
            progress.bar.set_style(style);
        }
        progress
    }

    /// Whether anybody sees it; if not, its total need not be found out.
    pub fn would_show(json: bool) -> bool {
        !json && !ProgressDrawTarget::stderr().is_hidden()
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// So many bytes are done in all, of `total`.
    pub fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// What stands behind the bar.
    pub fn message(&self, message: String) {
        if !self.bar.is_hidden() {
            self.bar.set_message(message);
        }
    }

    /// Takes the bar away while `write` writes.
    pub fn suspend(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
