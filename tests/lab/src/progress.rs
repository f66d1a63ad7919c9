//! One line for each step, with the time since the start.

use std::time::Instant;

/// Says what is being done, or keeps quiet.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    start: Option<Instant>,
}

impl Progress {
    /// Lines on standard error.
    pub fn shown() -> Self {
        Self { start: Some(Instant::now()) }
    }

    /// Nothing.
    pub fn quiet() -> Self {
        Self { start: None }
    }

    /// One step.
    pub fn step(&self, what: &str) {
        if let Some(start) = self.start {
            eprintln!("[{:6.1} s] {what}", start.elapsed().as_secs_f64());
        }
    }
}
