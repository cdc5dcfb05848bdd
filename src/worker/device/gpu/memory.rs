//! Buffers on the device. Between guard bands, they show who leaves them: a shader sees its tensor and the band behind it, and with
//! bounds checks whatever index lies beyond that is the band's last element (or, as WGSL allows, nothing); the bands hold the
//! poison that values hold, so that what is read there shows like an unwritten value does.

use super::Gpu;
use kernelforge::protocol::{Failure, FailureKind};
use std::sync::{Arc, mpsc};
use wgpu::{BufferDescriptor, BufferUsages, CommandEncoderDescriptor, MapMode};

/// Bytes of a band: as far as a tile reaches beyond a matrix of some hundred columns, and a multiple of every alignment.
pub const BAND: u64 = 1024;

/// What a shader is given is rounded up to this, the size of the widest vector.
const VECTOR: u64 = 16;

/// One buffer of the device, and the part of it that a shader is given.
pub struct Region {
    pub buffer: wgpu::Buffer,
    /// Of the tensor in the buffer, in bytes.
    pub offset: u64,
    /// Of the tensor.
    pub bytes: u64,
    /// Behind the tensor, visible to the shader. 0 without guards.
    band: u64,
}

impl Region {
    /// Room for `bytes`, between bands where `guarded`.
    ///
    /// # Errors
    /// `OutOfMemory`; `IllegalPlan` for more than the device lets one shader see, with the figures.
    pub fn new(gpu: &Gpu, bytes: u64, guarded: bool) -> Result<Self, Failure> {
        let (offset, band) = if guarded { (BAND, BAND) } else { (0, 0) };
        let visible = bytes.max(1).next_multiple_of(VECTOR) + band;
        if visible > gpu.facts.binding_bytes || offset + visible > gpu.facts.buffer_bytes {
            let limit = gpu.facts.binding_bytes.min(gpu.facts.buffer_bytes);
            let message = format!("a buffer of {bytes} bytes: {} gives a shader at most {limit}", gpu.facts.name);
            return Err(Failure::new(FailureKind::IllegalPlan, message)
                .with_hint("a smaller `seq`, `batch` or width; or another adapter"));
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let descriptor = BufferDescriptor { label: None, size: offset + visible, usage, mapped_at_creation: false };
        let buffer = gpu.scoped(|| gpu.device.create_buffer(&descriptor))?;
        Ok(Self { buffer, offset, bytes, band })
    }

    /// What the shader sees.
    pub fn binding(&self) -> wgpu::BufferBinding<'_> {
        let size = std::num::NonZeroU64::new(self.visible());
        wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size }
    }

    fn visible(&self) -> u64 {
        self.bytes.max(1).next_multiple_of(VECTOR) + self.band
    }

    /// The bytes of both bands, from the buffer's start: what no kernel may change. What lies between the tensor and a multiple
    /// of four bytes is left out, because it cannot be copied apart from the tensor.
    pub fn bands(&self) -> Vec<(u64, u64)> {
        if self.band == 0 {
            return Vec::new();
        }
        let behind = (self.offset + self.bytes).next_multiple_of(4);
        vec![(0, self.offset), (behind, self.offset + self.visible() - behind)]
    }

    /// Writes the tensor's bytes; a length that is no multiple of four is filled up with zeros.
    pub fn write(&self, gpu: &Gpu, data: &[u8]) {
        if data.len().is_multiple_of(4) {
            gpu.queue.write_buffer(&self.buffer, self.offset, data);
        } else {
            let mut padded = data.to_vec();
            padded.resize(data.len().next_multiple_of(4), 0);
            gpu.queue.write_buffer(&self.buffer, self.offset, &padded);
        }
    }

    /// Fills bands, and the tensor too where `whole`, with this pattern of four bytes.
    pub fn fill(&self, gpu: &Gpu, pattern: [u8; 4], whole: bool) {
        let parts = if whole { vec![(0, self.buffer.size())] } else { self.bands() };
        for (offset, bytes) in parts {
            let mut at = 0;
            while at < bytes {
                // Some megabytes at a time: the queue keeps a copy.
                let chunk = (bytes - at).min(1 << 24);
                gpu.queue.write_buffer(&self.buffer, offset + at, &pattern.repeat((chunk / 4) as usize));
                at += chunk;
            }
        }
    }
}

/// Copies a tensor on the device, and overwrites it with zeros.
pub fn take(gpu: &Gpu, from: &Region, to: &Region) {
    let mut encoder = gpu.device.create_command_encoder(&CommandEncoderDescriptor::default());
    let bytes = from.bytes.next_multiple_of(4);
    encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, bytes);
    encoder.clear_buffer(&from.buffer, from.offset, Some(bytes));
    gpu.queue.submit([encoder.finish()]);
}

/// Copies parts of buffers to the host, in one submission, and returns their bytes in order.
///
/// # Errors
/// As [`Gpu::wait`].
pub fn download(gpu: &Gpu, parts: &[(&wgpu::Buffer, u64, u64)]) -> Result<Vec<Vec<u8>>, Failure> {
    let total: u64 = parts.iter().map(|it| it.2.next_multiple_of(4)).sum();
    if total == 0 {
        return Ok(parts.iter().map(|_| Vec::new()).collect());
    }
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let staging =
        gpu.device.create_buffer(&BufferDescriptor { label: None, size: total, usage, mapped_at_creation: false });
    let mut encoder = gpu.device.create_command_encoder(&CommandEncoderDescriptor::default());
    let mut at = 0;
    for (buffer, offset, bytes) in parts {
        let bytes = bytes.next_multiple_of(4);
        encoder.copy_buffer_to_buffer(buffer, *offset, &staging, at, bytes);
        at += bytes;
    }
    gpu.queue.submit([encoder.finish()]);
    let (sender, mapped) = mpsc::channel();
    staging.map_async(MapMode::Read, .., move |it| {
        let _ = sender.send(it);
    });
    gpu.wait()?;
    let unmapped = |it: String| Failure::new(FailureKind::Internal, format!("{}: {it}", gpu.facts.name));
    mapped.recv().map_err(|it| unmapped(it.to_string()))?.map_err(|it| unmapped(it.to_string()))?;
    let view = staging.get_mapped_range(..).map_err(|it| unmapped(it.to_string()))?;
    let (mut all, mut at) = (Vec::with_capacity(parts.len()), 0);
    for (_, _, bytes) in parts {
        all.push(view[at..at + *bytes as usize].to_vec());
        at += bytes.next_multiple_of(4) as usize;
    }
    Ok(all)
}

/// As [`download`], of whole tensors.
///
/// # Errors
/// As [`download`].
pub fn read(gpu: &Arc<Gpu>, regions: &[&Region]) -> Result<Vec<Vec<u8>>, Failure> {
    let parts: Vec<_> = regions.iter().map(|it| (&it.buffer, it.offset, it.bytes)).collect();
    download(gpu, &parts)
}
