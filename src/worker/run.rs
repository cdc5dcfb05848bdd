//! `kforge run`: one call of a built kernel on tensors that somebody gives, so that anyone can check it against another
//! framework.
//!
//! Tensors have the names, shapes and types of the stage graph (`x`, `attn.wq`, ...; weights [K, N] row-major). Rotary tables follow
//! from the block and need not be given. Without a file every tensor is drawn from the seed.

use crate::{
    device::{self, cpu::LoadedKernel},
    verify::{
        candidate::{Candidate, Compiled},
        inputs,
    },
};
use kernelforge::{
    half::Half,
    manifest::spec::{self, BlockSpec},
    plan::{
        kernel::Kernel,
        stage::{Role, Tensor, TensorId},
    },
    protocol::{Failure, FailureKind},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

pub struct Request<'a> {
    pub object: &'a [u8],
    pub kernel: Kernel,
    pub block: &'a BlockSpec,
    pub threads: usize,
    pub seed: u64,
    /// A safetensors file with every input and weight.
    pub tensors: Option<&'a [u8]>,
    /// Return what went in and every stage's output too.
    pub stages: bool,
}

/// Runs the kernel once and returns a safetensors file: the outputs; with `stages` also inputs, weights and stage outputs.
///
/// # Errors
/// `BadInput`, one failure for all tensors that are missing, unknown, or of the wrong shape or type.
pub fn run(request: Request<'_>) -> Result<Vec<u8>, Failure> {
    let loaded = LoadedKernel::load(request.object, request.kernel)?;
    // Fails early where the system cannot start the threads.
    device::started(request.threads)?;
    let mut kernel = Compiled::new(&loaded, request.threads, None)?;
    let Request { block, seed, tensors, .. } = request;
    run_on(&mut kernel, block, seed, tensors, request.stages)
}

/// As [`run`], on whatever runs.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    kernel: &mut dyn Candidate,
    block: &BlockSpec,
    seed: u64,
    tensors: Option<&[u8]>,
    stages: bool,
) -> Result<Vec<u8>, Failure> {
    inputs::fill(kernel, inputs::rope_theta(block), seed);
    if let Some(bytes) = tensors {
        given(kernel, bytes)?;
    }
    kernel.prepare();
    kernel.poison(f32::NAN);
    if stages || kernel.blocks_are_stages() {
        (0..kernel.graph().stages.len()).for_each(|it| kernel.stage(it));
    } else {
        kernel.block();
    }
    let kept = |it: &Tensor| stages || it.role == Role::Output;
    let tensors: Vec<_> = kernel.graph().tensors.iter().enumerate().filter(|it| kept(it.1)).collect();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|it| to_bytes(kernel.tensor(TensorId(it.0)), it.1.dtype)).collect();
    let views = tensors.iter().zip(&bytes).map(|((_, tensor), bytes)| {
        let view = TensorView::new(file_dtype(tensor.dtype), tensor.shape.clone(), bytes).map_err(internal)?;
        Ok((tensor.name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, Failure>>()?;
    safetensors::serialize(views, None).map_err(internal)
}

fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Internal, format!("the tensors cannot be written: {error}"))
}

/// What the file format calls it.
fn file_dtype(dtype: spec::Dtype) -> Dtype {
    match dtype {
        spec::Dtype::F32 => Dtype::F32,
        spec::Dtype::F16 => Dtype::F16,
        spec::Dtype::Bf16 => Dtype::BF16,
    }
}

fn to_bytes(values: &[f32], dtype: spec::Dtype) -> Vec<u8> {
    match Half::of(dtype) {
        None => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
        // Exact: these are the values of such elements.
        Some(half) => values.iter().flat_map(|it| half.narrow(*it).to_le_bytes()).collect(),
    }
}

fn from_bytes(bytes: &[u8], dtype: spec::Dtype, values: &mut [f32]) {
    match Half::of(dtype) {
        None => {
            let given = bytes.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it));
            values.iter_mut().zip(given).for_each(|(to, from)| *to = from);
        }
        Some(half) => {
            let given = bytes.as_chunks::<2>().0.iter().map(|it| half.widen(u16::from_le_bytes(*it)));
            values.iter_mut().zip(given).for_each(|(to, from)| *to = from);
        }
    }
}

/// Copies the file's tensors into the kernel's.
fn given(kernel: &mut dyn Candidate, bytes: &[u8]) -> Result<(), Failure> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|it| Failure::new(FailureKind::BadInput, format!("the input is no safetensors file: {it}")))?;
    let wanted: Vec<_> =
        kernel.graph().tensors.iter().enumerate().map(|(index, it)| (TensorId(index), it.clone())).collect();
    let wanted: Vec<_> = wanted.into_iter().filter(|it| matches!(it.1.role, Role::Input | Role::Weight)).collect();
    let mut problems = Vec::new();
    for name in file.names() {
        if !wanted.iter().any(|it| it.1.name == name) {
            problems.push(format!("`{name}` is no tensor of this block"));
        }
    }
    for (id, tensor) in &wanted {
        match file.tensor(&tensor.name) {
            Err(_) if tensor.name.starts_with("rope.") => {}
            Err(_) => problems.push(format!("`{}` {:?} is missing", tensor.name, tensor.shape)),
            // Not converted: rounding somebody's f32 would be a change that they did not ask for.
            Ok(view) if view.dtype() != file_dtype(tensor.dtype) => {
                let (name, expected) = (&tensor.name, tensor.dtype.name());
                problems.push(format!("`{name}` is {}: {expected} is expected", view.dtype()));
            }
            Ok(view) if view.shape() != tensor.shape => {
                problems.push(format!(
                    "`{}` has shape {:?}: {:?} is expected",
                    tensor.name,
                    view.shape(),
                    tensor.shape
                ));
            }
            Ok(view) => from_bytes(view.data(), tensor.dtype, kernel.tensor_mut(*id)),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let count = problems.len();
    let message = format!("{count} of the given tensors do not fit: {}", problems.join("; "));
    Err(Failure::new(FailureKind::BadInput, message)
        .with_hint("`kforge run BLOCK@TARGET --stages --output FILE` writes a file with every tensor's name and shape"))
}
