//! `kforge run BLOCK@TARGET`: the built and verified kernel on given tensors.

use super::{
    build::{self, Wanted},
    error::{Error, Outcome},
    print,
    project::{self, Opened, Selection},
    worker::Asker,
};
use crate::{
    build::graph::StepKind,
    half::Half,
    host::Device,
    protocol::{ActionKind, blob},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One block instance for one target
    #[arg(value_name = "BLOCK@TARGET")]
    block: String,
    /// The block's inputs and weights under their documented names; random ones if not given
    #[arg(long, value_name = "FILE.safetensors")]
    input: Option<PathBuf>,
    /// Where the results go; only their shapes and ranges are printed if not given
    #[arg(long, value_name = "FILE.safetensors")]
    output: Option<PathBuf>,
    /// Give every stage's output too
    #[arg(long)]
    stages: bool,
    /// Of the random tensors
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let selection = Selection { blocks: vec![args.block.clone()], ..Selection::default() };
    let opened = Opened::open(directory, &selection)?;
    project::only(
        &opened.blocks.iter().map(|it| format!("{}@{}", it.name, it.target)).collect::<Vec<_>>(),
        &args.block,
    )?;
    let verify = opened.step(0, StepKind::Verify).ok_or_else(|| Error::input("the block has no kernel"))?;
    let outputs = match build::bring_up_to_date(&opened, verify.id)? {
        Wanted::Built(outputs) => outputs,
        Wanted::Not(outcome) => return Ok(outcome),
    };
    let asker = Asker::new(opened.store.dir())?;
    let read = [blob::OBJECT, blob::KERNEL, blob::PLAN, blob::AUDIT];
    let mut inputs: BTreeMap<_, _> =
        outputs.iter().filter(|it| read.contains(&it.0)).map(|it| (it.0.to_owned(), *it.1)).collect();
    if let Some(path) = &args.input {
        let bytes =
            fs::read(path).map_err(|error| Error::input(format!("cannot read `{}`: {error}", path.display())))?;
        inputs.insert(blob::TENSORS.to_owned(), asker.cas.put(&bytes)?);
    }
    let block = &opened.blocks[0];
    let action = ActionKind::Run {
        block: block.spec.clone(),
        device: Device::clone(&block.device),
        threads: verify.threads,
        seed: args.seed,
        stages: args.stages,
    };
    let bytes = asker.with(|asked| {
        let outputs = asked.action(action, inputs, StepKind::Benchmark)?;
        asked.bytes(&outputs, blob::TENSORS)
    })?;
    if let Some(path) = &args.output {
        fs::write(path, &bytes)
            .map_err(|error| Error::environment(format!("cannot write `{}`: {error}", path.display())))?;
    }
    let tensors = tensors(&bytes).map_err(|error| Error::environment(format!("the worker's tensors: {error}")))?;
    if args.json {
        print::json(
            &serde_json::json!({ "version": 1, "block": args.block, "output": args.output, "tensors": tensors }),
        )?;
    } else {
        print::out(&table(&tensors))?;
    }
    Ok(Outcome::Done)
}

/// What is told of one tensor.
#[derive(Debug, PartialEq, serde::Serialize)]
struct Summary {
    name: String,
    shape: Vec<usize>,
    min: f32,
    max: f32,
    mean: f64,
    first: Vec<f32>,
}

/// The tensors in a safetensors file (<https://github.com/huggingface/safetensors#format>), of f32, f16 or bf16: the length of a JSON
/// header in 8 bytes, little-endian, the header, the data.
fn tensors(bytes: &[u8]) -> Result<Vec<Summary>, String> {
    #[derive(Deserialize)]
    struct Entry {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: (usize, usize),
    }
    let short = || "the file is cut short".to_owned();
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|error| error.to_string())?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(short)?;
    let mut header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| error.to_string())?;
    header.remove("__metadata__");
    let summary = |(name, entry)| {
        let Entry { dtype, shape, data_offsets: (begin, end) } =
            serde_json::from_value(entry).map_err(|error| error.to_string())?;
        let data = data.get(begin..end).ok_or_else(short)?;
        let halves = |format: Half| -> Vec<f32> {
            data.as_chunks::<2>().0.iter().map(|it| format.widen(u16::from_le_bytes(*it))).collect()
        };
        let values: Vec<f32> = match dtype.as_str() {
            "F32" => data.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect(),
            "F16" => halves(Half::F16),
            "BF16" => halves(Half::Bf16),
            other => return Err(format!("tensor `{name}` is {other}")),
        };
        let mean = values.iter().map(|it| f64::from(*it)).sum::<f64>() / values.len().max(1) as f64;
        let (min, max) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |it, v| (it.0.min(*v), it.1.max(*v)));
        Ok(Summary { name, shape, min, max, mean, first: values.into_iter().take(3).collect() })
    };
    header.into_iter().map(summary).collect()
}

fn table(tensors: &[Summary]) -> String {
    let header = ["tensor", "shape", "min", "max", "mean", "first values"].map(str::to_owned).to_vec();
    let row = |it: &Summary| {
        let shape: Vec<_> = it.shape.iter().map(ToString::to_string).collect();
        let first: Vec<_> = it.first.iter().map(|it| format!("{it:.6}")).collect();
        vec![
            it.name.clone(),
            shape.join("x"),
            format!("{:.6}", it.min),
            format!("{:.6}", it.max),
            format!("{:.6}", it.mean),
            first.join(" "),
        ]
    };
    print::columns(&std::iter::once(header).chain(tensors.iter().map(row)).collect::<Vec<_>>(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safetensors_file_is_summed_up() {
        let header = br#"{"__metadata__":{"a":"b"},"y":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.extend([1.0f32, 3.0].iter().flat_map(|it| it.to_le_bytes()));
        let tensors = tensors(&file).unwrap();
        let (shape, first) = (vec![1, 2], vec![1.0, 3.0]);
        assert_eq!(tensors, [Summary { name: "y".to_owned(), shape, min: 1.0, max: 3.0, mean: 2.0, first }]);
    }

    #[test]
    fn a_tensor_of_halves_is_summed_up_and_one_of_bytes_is_refused() {
        let file = |dtype: &str| {
            let header = format!(r#"{{"y":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,4]}}}}"#);
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend_from_slice(header.as_bytes());
            file.extend([0x3c00u16, 0xc000].iter().flat_map(|it| it.to_le_bytes()));
            file
        };
        let found = tensors(&file("F16")).unwrap();
        assert_eq!((found[0].first.as_slice(), found[0].mean), (&[1.0, -2.0][..], -0.5));
        let found = tensors(&file("BF16")).unwrap();
        assert_eq!(found[0].first, [0.0078125, -2.0]);
        assert_eq!(tensors(&file("U8")), Err("tensor `y` is U8".to_owned()));
    }

    #[test]
    fn a_file_cut_short_is_an_error() {
        assert_eq!(tensors(&[9, 0, 0, 0, 0, 0, 0, 0, b'{']), Err("the file is cut short".to_owned()));
    }
}
