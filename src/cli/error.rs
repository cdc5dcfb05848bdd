//! What a command ends with: an exit code, and for failures a message with a hint.

use super::{
    located::{self, Located},
    print,
};
use crate::{
    build::engine::{devices::DeviceError, run::BuildError, worker::WorkerError},
    manifest::{self, ProjectErrors},
    protocol::{Failure, FailureKind},
    store::{BuildLockError, StoreError, lock::LockError, out::OutError},
};
use std::{fmt, io, process::ExitCode};

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done = 0,
    /// A step failed: wrong, crashed, refused.
    StepFailed = 1,
    /// The manifest or the command line.
    Input = 2,
    /// No worker, no device, no room on the disk.
    Environment = 3,
    /// Something is stale under `--locked`.
    Stale = 4,
    Interrupted = 130,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub struct Error(Box<Kind>);

#[derive(Debug)]
enum Kind {
    Manifest(ProjectErrors),
    /// What is wrong with a file that was handed over; never empty.
    Located(Vec<Located>),
    Message {
        code: Outcome,
        message: String,
        detail: String,
        hint: Option<String>,
    },
}

impl Error {
    fn message(code: Outcome, message: impl Into<String>) -> Self {
        Self(Box::new(Kind::Message { code, message: message.into(), detail: String::new(), hint: None }))
    }

    /// The command line asks for what cannot be.
    pub fn input(message: impl Into<String>) -> Self {
        Self::message(Outcome::Input, message)
    }

    /// A file that was handed over is not what it should be.
    pub fn located(problems: Vec<Located>) -> Self {
        Self(Box::new(Kind::Located(problems)))
    }

    pub fn environment(message: impl Into<String>) -> Self {
        Self::message(Outcome::Environment, message)
    }

    pub fn interrupted() -> Self {
        Self::message(Outcome::Interrupted, "interrupted")
    }

    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Kind::Message { hint, .. } = &mut *self.0 {
            *hint = Some(text.into());
        }
        self
    }

    pub fn code(&self) -> Outcome {
        match &*self.0 {
            Kind::Manifest(_) | Kind::Located(_) => Outcome::Input,
            Kind::Message { code, .. } => *code,
        }
    }

    pub fn print(&self) {
        match &*self.0 {
            Kind::Manifest(errors) => {
                let color = print::colored(&io::stderr());
                print::err(&manifest::render(errors, color, print::width()));
            }
            Kind::Located(problems) => {
                let color = print::colored(&io::stderr());
                print::err(&located::render(problems, color, print::width()));
            }
            Kind::Message { message, detail, hint, .. } => print::problem(message, detail, hint.as_deref()),
        }
    }
}

/// The message alone, for commands that report a failure as a finding.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Manifest(errors) => write!(f, "{errors}"),
            Kind::Located(problems) => write!(f, "{}", located::count(problems)),
            Kind::Message { message, .. } => f.write_str(message),
        }
    }
}

impl From<ProjectErrors> for Error {
    fn from(errors: ProjectErrors) -> Self {
        Self(Box::new(Kind::Manifest(errors)))
    }
}

impl From<WorkerError> for Error {
    fn from(error: WorkerError) -> Self {
        match (&error, error.hint()) {
            (WorkerError::Interrupted, _) => Self::interrupted(),
            (_, Some(hint)) => Self::environment(error.to_string()).with_hint(hint),
            (_, None) => Self::environment(error.to_string()),
        }
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        let (code, message) = match error {
            DeviceError::Worker(error) => return error.into(),
            DeviceError::Probe(failure) if failure.kind == FailureKind::Cancelled => return Self::interrupted(),
            _ => (Outcome::Environment, error.to_string()),
        };
        Self(Box::new(Kind::Message { code, message, detail: error.detail(), hint: error.hint() }))
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Worker(error) => error.into(),
            BuildError::Store(error) => error.into(),
            BuildError::Lock(error) => error.into(),
        }
    }
}

/// A failed action outside of a build.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            FailureKind::BadInput => Outcome::Input,
            FailureKind::DeviceUnavailable | FailureKind::Io => Outcome::Environment,
            FailureKind::Cancelled => return Self::interrupted(),
            _ => Outcome::StepFailed,
        };
        Self(Box::new(Kind::Message { code, message: failure.message, detail: failure.detail, hint: failure.hint }))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::environment(error.to_string())
    }
}

macro_rules! environment {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::environment(error.to_string())
            }
        })*
    };
}

environment!(StoreError, BuildLockError, LockError, OutError);
