//! One GPU, opened: the queue, what went wrong on it, the pipelines that its driver compiled before.

use super::adapters;
use kernelforge::{
    host::gpu::{GpuFacts, GpuFeature},
    protocol::{Failure, FailureKind},
    store::cas::Cas,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use wgpu::{
    DeviceDescriptor, ExperimentalFeatures, MemoryHints, PipelineCache, PipelineCacheDescriptor, PollType, Trace,
};

/// Longer than any kernel that is worth running; the tool ends what hangs longer than an action may.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// An open device. What the driver reports later than the call that caused it is kept, and [`Gpu::check`] returns it.
pub struct Gpu {
    pub facts: GpuFacts,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    trouble: Arc<Mutex<Trouble>>,
    cache: Option<(PipelineCache, Cas)>,
}

#[derive(Default)]
struct Trouble {
    lost: Option<String>,
    errors: Vec<(FailureKind, String)>,
}

/// The device that was opened last: opening one takes 0.1 to 1 s, and a worker does many actions on the same.
static OPENED: Mutex<Option<Arc<Gpu>>> = Mutex::new(None);

impl Gpu {
    /// The device with exactly these facts. `store`: where compiled pipelines are kept between processes.
    ///
    /// # Errors
    /// `DeviceUnavailable` when this machine has no such device, or its driver does not open it.
    pub fn open(facts: &GpuFacts, store: Option<&Cas>) -> Result<Arc<Self>, Failure> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = opened.as_ref().filter(|it| it.facts == *facts && !it.is_lost()) {
            return Ok(Arc::clone(gpu));
        }
        // A lost device is let go of before another one is asked for: some drivers have one at a time.
        *opened = None;
        let gpu = Arc::new(Self::new(facts, store)?);
        *opened = Some(Arc::clone(&gpu));
        Ok(gpu)
    }

    fn new(facts: &GpuFacts, store: Option<&Cas>) -> Result<Self, Failure> {
        let unavailable = |message: String| {
            Failure::new(FailureKind::DeviceUnavailable, message)
                .with_hint("`kforge doctor` shows the GPUs of this machine")
        };
        let adapters = adapters::all();
        let found = adapters.iter().find(|it| adapters::facts(it) == *facts);
        let adapter = found.ok_or_else(|| {
            let names: Vec<_> = adapters.iter().map(|it| adapters::facts(it).to_string()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let short = facts.fingerprint().short();
            unavailable(format!("the action is for device {short} ({facts}), and this machine has {names}"))
        })?;
        let descriptor = DeviceDescriptor {
            label: None,
            required_features: adapters::features(facts),
            required_limits: adapter.limits(),
            // SAFETY: cooperative matrices are experimental in wgpu because it does not check shapes and types of their
            // operands. The templates use the shapes that the device lists, and gate V0 refuses schedules with others.
            experimental_features: unsafe { ExperimentalFeatures::enabled() },
            memory_hints: MemoryHints::Performance,
            trace: Trace::Off,
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|it| unavailable(format!("{facts} does not open: {it}")))?;
        let trouble = Arc::new(Mutex::new(Trouble::default()));
        let of_loss = Arc::clone(&trouble);
        device.set_device_lost_callback(move |reason, message| {
            let mut trouble = of_loss.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.lost.get_or_insert_with(|| format!("{reason:?}: {message}"));
        });
        let of_errors = Arc::clone(&trouble);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut trouble = of_errors.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.errors.push(classify(&error));
        }));
        let cache = store.filter(|_| facts.has(GpuFeature::PipelineCache)).map(|store| {
            let data = store.recall(&memo(facts));
            let descriptor = PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
            // SAFETY: a memo with its checksum, of what `get_data` returned for a device with the same facts, driver version
            // included; wgpu checks its header, and takes an empty cache instead of one that does not fit (`fallback`).
            (unsafe { device.create_pipeline_cache(&descriptor) }, store.clone())
        });
        let facts = facts.clone();
        Ok(Self { facts, device, queue, trouble, cache })
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_lost(&self) -> bool {
        self.trouble().lost.is_some()
    }

    /// What went wrong since this was asked last.
    ///
    /// # Errors
    /// `Crash` for a device that was lost, `OutOfMemory`, `Codegen` for what wgpu's validation refuses.
    pub fn check(&self) -> Result<(), Failure> {
        let mut trouble = self.trouble();
        if let Some(lost) = &trouble.lost {
            let failure = Failure::new(FailureKind::Crash, format!("{} was lost: {lost}", self.facts.name));
            return Err(failure.with_hint("the next action opens it anew"));
        }
        let errors = std::mem::take(&mut trouble.errors);
        match errors.into_iter().next() {
            None => Ok(()),
            Some((kind, message)) => Err(Failure::new(kind, format!("{}: {message}", self.facts.name))),
        }
    }

    /// Waits for everything that was submitted.
    ///
    /// # Errors
    /// As [`Gpu::check`]; `Timeout`.
    pub fn wait(&self) -> Result<(), Failure> {
        let waited = self.device.poll(PollType::Wait { submission_index: None, timeout: Some(LONGEST_WAIT) });
        self.check()?;
        waited.map(|_| ()).map_err(|it| Failure::new(FailureKind::Timeout, format!("{}: {it}", self.facts.name)))
    }

    /// For pipelines; none where the device cannot keep them or nobody said where.
    pub fn pipeline_cache(&self) -> Option<&PipelineCache> {
        self.cache.as_ref().map(|it| &it.0)
    }

    /// Keeps the pipelines that were compiled since the device was opened. That they could not be kept costs time only.
    pub fn keep_pipelines(&self) {
        let Some((cache, store)) = &self.cache else { return };
        let Some(data) = cache.get_data() else { return };
        let name = memo(&self.facts);
        // Pipelines only come: a cache as long as the kept one has the same ones.
        if store.recall(&name).is_some_and(|it| it.len() == data.len()) {
            return;
        }
        if let Err(error) = store.remember(&name, &data) {
            eprintln!("warning: compiled pipelines are not kept: {error}");
        }
    }

    /// Loses the device, as a driver that resets it does.
    #[cfg(test)]
    pub fn lose(&self) {
        self.device.destroy();
        // The callback comes with the next poll; whoever asks in between must know too.
        let _ = self.device.poll(PollType::Poll);
        self.trouble().lost.get_or_insert_with(|| "destroyed".to_owned());
    }
}

/// The name that a device's pipelines are remembered under.
fn memo(facts: &GpuFacts) -> String {
    format!("pipelines-{}", facts.fingerprint().short())
}

fn classify(error: &wgpu::Error) -> (FailureKind, String) {
    match error {
        wgpu::Error::OutOfMemory { .. } => (FailureKind::OutOfMemory, "not enough memory".to_owned()),
        wgpu::Error::Validation { description, .. } => (FailureKind::Codegen, description.clone()),
        wgpu::Error::Internal { description, .. } => (FailureKind::Internal, description.clone()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A device of one test's own.
    pub fn alone(facts: &GpuFacts) -> Arc<Gpu> {
        Arc::new(Gpu::new(facts, None).unwrap())
    }

    pub fn alone_with(facts: &GpuFacts, store: &Cas) -> Arc<Gpu> {
        Arc::new(Gpu::new(facts, Some(store)).unwrap())
    }

    /// The same device, said to be able to do something else.
    pub fn with_facts(gpu: &Gpu, facts: GpuFacts) -> Arc<Gpu> {
        let (device, queue, trouble) = (gpu.device.clone(), gpu.queue.clone(), Arc::clone(&gpu.trouble));
        Arc::new(Gpu { facts, device, queue, trouble, cache: None })
    }
}
