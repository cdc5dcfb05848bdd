//! A file that a running build tells into: whole lines, each visible to a reader as soon as it is written.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Why a file does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Nothing was run yet.
    #[error("cannot write `{}`: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    /// The build went on without it.
    #[error("`{}` is incomplete: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

pub struct Sink {
    path: PathBuf,
    /// Not buffered: a reader can follow, and what was told before a crash is there.
    out: Box<dyn Write + Send>,
    start: Instant,
    /// The first failure; nothing is written after it, because lines would be missing in between.
    failed: Option<io::Error>,
}

impl Sink {
    /// Creates or empties the file and writes `head`, so that a file that cannot be written is known before anything runs.
    pub fn create(path: &Path, head: &[u8]) -> Result<Self, SinkError> {
        let failed = |source| SinkError::Create { path: path.to_owned(), source };
        let mut file = File::create(path).map_err(failed)?;
        file.write_all(head).map_err(failed)?;
        Ok(Self::new(path, file))
    }

    fn new(path: &Path, out: impl Write + Send + 'static) -> Self {
        Self { path: path.to_owned(), out: Box::new(out), start: Instant::now(), failed: None }
    }

    /// Microseconds since the file was created.
    pub fn now(&self) -> u64 {
        micros(self.start.elapsed())
    }

    /// Writes in one piece.
    pub fn write(&mut self, text: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(text).and_then(|()| self.out.flush()).err();
        }
    }

    /// Whether all that was told is written. The reader of a pipe that went away has read what it wanted: that is no failure.
    pub fn finish(self) -> Result<(), SinkError> {
        match self.failed {
            Some(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(SinkError::Write { path: self.path, source })
            }
            _ => Ok(()),
        }
    }
}

pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A file in memory, full after so many bytes.
    #[derive(Clone, Default)]
    pub struct Memory(pub Arc<Mutex<Vec<u8>>>, pub usize);

    impl Memory {
        pub fn sink(&self) -> Sink {
            Sink::new(Path::new("told"), self.clone())
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.0.lock().unwrap();
            if written.len() + bytes.len() > self.1 {
                return Err(io::Error::other("full"));
            }
            written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_failure_nothing_more_is_written_and_the_end_says_so() {
        let memory = Memory(Arc::default(), 6);
        let mut sink = memory.sink();
        for text in ["one\n", "two\n", "3\n"] {
            sink.write(text.as_bytes());
        }
        assert_eq!(sink.finish().unwrap_err().to_string(), "`told` is incomplete: full");
        assert_eq!(*memory.0.lock().unwrap(), b"one\n");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_at_once() {
        for path in ["/nonexistent/file", "/", "/dev/full"] {
            let error = Sink::create(Path::new(path), b"head\n").err().map(|it| it.to_string());
            assert!(error.is_some_and(|it| it.starts_with(&format!("cannot write `{path}`: "))), "{path}");
        }
    }
}
