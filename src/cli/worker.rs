//! Single actions outside of a build, for the commands that ask the toolchain something.

use super::error::Error;
use crate::{
    build::engine::{
        action,
        devices::{self, Finder},
        interrupt,
        worker::{Leash, Request, Seat, Toolchain},
    },
    build::graph::StepKind,
    host::CpuFacts,
    protocol::{ActionKind, Blobs, Failure, FailureKind},
    store::cas::Cas,
};
use std::{path::Path, sync::Arc, time::SystemTime};

/// One worker on one store.
pub struct Asker {
    toolchain: Toolchain,
    leash: Arc<Leash>,
    pub cas: Cas,
}

impl Asker {
    /// `store` is a project's cache folder, or any folder for commands that keep nothing.
    pub fn new(store: &Path) -> Result<Self, Error> {
        Ok(Self { toolchain: Toolchain::new(store), leash: Arc::new(Leash::default()), cas: Cas::open(store)? })
    }

    pub fn leash(&self) -> &Leash {
        &self.leash
    }

    /// For those who guard it themselves.
    pub fn shared_leash(&self) -> &Arc<Leash> {
        &self.leash
    }

    /// Finds devices and remembers none.
    pub fn finder(&self) -> Finder<'_> {
        let probe = || {
            let _guard = interrupt::guard(&self.leash);
            devices::probe(&self.toolchain, &self.leash, &self.cas)
        };
        Finder::new(CpuFacts::detect(), probe)
    }

    pub fn toolchain(&self) -> &Toolchain {
        &self.toolchain
    }

    /// Calls `ask` with a worker's seat; Ctrl-C ends what it asks.
    pub fn with<T>(&self, ask: impl FnOnce(&mut Asked<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let _guard = interrupt::guard(&self.leash);
        ask(&mut Asked { seat: Seat::new(&self.toolchain, &self.leash), cas: &self.cas })
    }
}

pub struct Asked<'a> {
    pub seat: Seat<'a>,
    cas: &'a Cas,
}

impl Asked<'_> {
    /// Does one action under the limits of a step of kind `like`.
    pub fn action(&mut self, kind: ActionKind, inputs: Blobs, like: StepKind) -> Result<Blobs, Error> {
        let limits = action::with_driver(action::limits(like), &kind);
        let request = Request { kind, inputs, limits };
        Ok(self.seat.execute(&request)??.outputs)
    }

    /// The content of one output.
    pub fn bytes(&self, outputs: &Blobs, name: &str) -> Result<Vec<u8>, Error> {
        let missing = || Failure::new(FailureKind::Internal, format!("the worker made no `{name}`"));
        let digest = outputs.get(name).ok_or_else(missing)?;
        self.cas.get(digest).map_err(|error| Error::environment(error.to_string()))
    }

    /// One output as the value it stands for.
    pub fn value<T: serde::de::DeserializeOwned>(&self, outputs: &Blobs, name: &str) -> Result<T, Error> {
        let bytes = self.bytes(outputs, name)?;
        let bad =
            |error| Failure::new(FailureKind::Internal, format!("output `{name}` is not what it should be: {error}"));
        Ok(serde_json::from_slice(&bytes).map_err(bad)?)
    }

    /// One output as text.
    pub fn text(&self, outputs: &Blobs, name: &str) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.bytes(outputs, name)?).into_owned())
    }
}

/// A seed that nobody chose.
pub fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos() & u128::from(u32::MAX)).unwrap_or_default()
}
