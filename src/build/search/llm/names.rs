//! Names as models write them, in the spelling that the plan has. Only names: a number in quotes remains a text, and is
//! refused, because whoever writes `"8"` next writes `"2 * lanes"`.

use super::short;
use crate::host::Device;
use serde_json::{Map, Value};

/// Fields in which models say what a schedule is for; it must be this device, and is in no schedule.
const BACKENDS: [&str; 2] = ["target", "backend"];
const GPU: [&str; 11] = ["gpu", "metal", "mps", "cuda", "vulkan", "webgpu", "wgpu", "wgsl", "rocm", "hip", "opencl"];
const CPU: [&str; 7] = ["cpu", "host", "x86", "x8664", "aarch64", "arm64", "llvm"];
/// Bytes of the longest name that is spelled anew.
const LONGEST: usize = 64;

/// Respells the names of a schedule's knobs and words, and takes out what it is for.
///
/// # Errors
/// Two names are one knob, or it is for another device.
pub fn normalise(schedule: Value, path: &str, device: &Device) -> Result<Value, String> {
    let mut schedule = respelled(schedule, path)?;
    for field in BACKENDS {
        let Some(said) = schedule.as_object_mut().and_then(|it| it.remove(field)) else { continue };
        let (known, name) = match device {
            Device::Cpu(_) => (&CPU[..], "cpu"),
            Device::Gpu(_) => (&GPU[..], "gpu"),
        };
        let wanted = || format!("schedules here are for the {name} `{}`", device.name());
        match said.as_str() {
            // `OpenCL` is `open-cl` by now.
            Some(text) if known.contains(&text.replace('-', "").as_str()) => {}
            Some(text) => return Err(format!("`{path}.{field}` is `{}`: {}", short(text), wanted())),
            None => return Err(format!("`{path}.{field}` is not a text: {}", wanted())),
        }
    }
    Ok(schedule)
}

fn respelled(value: Value, path: &str) -> Result<Value, String> {
    match value {
        Value::Object(members) => {
            let mut renamed = Map::new();
            for (key, value) in members {
                let name = kebab(&key);
                let value = respelled(value, &format!("{path}.{}", short(&name)))?;
                if renamed.contains_key(&name) {
                    return Err(format!("`{path}` has the field `{}` in two spellings", short(&name)));
                }
                renamed.insert(name, value);
            }
            Ok(renamed.into())
        }
        Value::String(word) => Ok(kebab(word.trim()).into()),
        other => Ok(other),
    }
}

/// `tile_m`, `tileM`, `TileM`, `TILE_M` are `tile-m`.
fn kebab(name: &str) -> String {
    if name.len() > LONGEST || !name.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'_' | b'-' | b' ')) {
        return name.to_owned();
    }
    let letters = name.as_bytes();
    let mut spelled = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map(|it| letters[it]);
        let after = letters.get(at + 1);
        let begins = letter.is_ascii_uppercase()
            && before.is_some_and(|it| {
                it.is_ascii_lowercase()
                    || it.is_ascii_digit()
                    || it.is_ascii_uppercase() && after.is_some_and(u8::is_ascii_lowercase)
            });
        if begins {
            spelled.push('-');
        }
        spelled.push(match letter {
            b'_' | b' ' => '-',
            letter => letter.to_ascii_lowercase().into(),
        });
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::CpuFacts;
    use serde_json::json;

    fn cpu() -> Device {
        CpuFacts { model: "a CPU".to_owned(), ..CpuFacts::detect() }.into()
    }

    #[test]
    fn spellings_of_a_name_are_one_name() {
        for (written, name) in [
            ("tile_m", "tile-m"),
            ("tileM", "tile-m"),
            ("TileM", "tile-m"),
            ("TILE_M", "tile-m"),
            ("GpuMatmul", "gpu-matmul"),
            ("GPUMatmul", "gpu-matmul"),
            ("pack_B", "pack-b"),
            ("rows outside", "rows-outside"),
            ("mr", "mr"),
            ("caf\u{e9}", "caf\u{e9}"),
        ] {
            assert_eq!(kebab(written), name);
        }
    }

    #[test]
    fn knobs_are_respelled_at_every_depth_and_numbers_are_not_touched() {
        let written =
            json!({ "rowBlock": 8, "up": { "pack_b": "Ahead", "mr": "8" }, "backend": "x86_64", "target": "CPU" });
        let read = json!({ "row-block": 8, "up": { "pack-b": "ahead", "mr": "8" } });
        assert_eq!(normalise(written, "s", &cpu()), Ok(read));
    }

    #[test]
    fn a_name_in_two_spellings_is_refused() {
        let error = normalise(json!({ "up": { "pack_b": 1, "packB": 1 } }), "s", &cpu()).unwrap_err();
        assert_eq!(error, "`s.up` has the field `pack-b` in two spellings");
    }

    #[test]
    fn a_schedule_for_another_device_is_refused() {
        let error = |value| normalise(json!({ "target": value }), "s", &cpu()).unwrap_err();
        assert_eq!(error(json!("Metal")), "`s.target` is `metal`: schedules here are for the cpu `a CPU`");
        assert!(error(json!(3)).contains("is not a text"));
    }
}
