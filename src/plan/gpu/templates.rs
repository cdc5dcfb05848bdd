//! Which templates of `shaders/` a schedule is rendered from. The texts are the worker's; the names are here, because a plan has
//! the digests of those that a project replaces.

use super::{
    attention::GpuAttention,
    matmul::{GpuMatmul, GpuMlp},
};
use crate::plan::{schedule::Schedule, stage::StageOp};
use std::collections::BTreeSet;

/// The built-in WGSL templates, `shaders/` without the folder, by name. A project may replace each by a file of its name.
pub const TEMPLATES: &[&str] = &[
    "attention-cooperative.wgsl",
    "attention-online.wgsl",
    "attention-scores.wgsl",
    "attention-weighted.wgsl",
    "elementwise.wgsl",
    "epilogue.wgsl",
    "math.wgsl",
    "matmul-cooperative.wgsl",
    "matmul-gemv.wgsl",
    "matmul-order.wgsl",
    "matmul-sum.wgsl",
    "matmul-tiled.wgsl",
    "norm.wgsl",
    "rope.wgsl",
    "transpose.wgsl",
];

/// What each template includes, the templates without any left out.
const INCLUDES: &[(&str, &[&str])] = &[
    ("attention-cooperative.wgsl", &["math.wgsl"]),
    ("attention-online.wgsl", &["math.wgsl"]),
    ("elementwise.wgsl", &["math.wgsl"]),
    ("matmul-cooperative.wgsl", &["epilogue.wgsl", "math.wgsl", "matmul-order.wgsl"]),
    ("matmul-gemv.wgsl", &["epilogue.wgsl", "math.wgsl"]),
    ("matmul-sum.wgsl", &["epilogue.wgsl", "math.wgsl"]),
    ("matmul-tiled.wgsl", &["epilogue.wgsl", "math.wgsl", "matmul-order.wgsl"]),
    ("norm.wgsl", &["math.wgsl"]),
];

/// The templates that a stage with this schedule is rendered from, included ones too, in the order of their names. None for a
/// schedule of a CPU.
pub fn templates(op: &StageOp, schedule: &Schedule) -> Vec<&'static str> {
    let mut open = match schedule {
        Schedule::GpuMatmul(it) => matmul(it),
        Schedule::GpuMlp(GpuMlp { up, down, .. }) => [matmul(up), matmul(down)].concat(),
        Schedule::GpuAttention(GpuAttention::Online(_)) => vec!["attention-online.wgsl"],
        Schedule::GpuAttention(GpuAttention::Cooperative(_)) => vec!["attention-cooperative.wgsl"],
        Schedule::GpuAttention(GpuAttention::HostSoftmax(_)) => {
            vec!["attention-scores.wgsl", "attention-weighted.wgsl"]
        }
        Schedule::GpuNorm(_) => vec!["norm.wgsl"],
        Schedule::GpuElementwise(_) if matches!(op, StageOp::Rope { .. }) => vec!["rope.wgsl"],
        Schedule::GpuElementwise(_) => vec!["elementwise.wgsl"],
        Schedule::Matmul(_)
        | Schedule::Attention(_)
        | Schedule::Norm(_)
        | Schedule::Elementwise(_)
        | Schedule::Mlp(_) => Vec::new(),
    };
    let mut all = BTreeSet::new();
    while let Some(name) = open.pop() {
        if all.insert(name) {
            open.extend(INCLUDES.iter().filter(|it| it.0 == name).flat_map(|it| it.1));
        }
    }
    all.into_iter().collect()
}

fn matmul(schedule: &GpuMatmul) -> Vec<&'static str> {
    let own = match schedule {
        GpuMatmul::Tiled(_) => "matmul-tiled.wgsl",
        GpuMatmul::Cooperative(_) => "matmul-cooperative.wgsl",
        GpuMatmul::Gemv(_) => "matmul-gemv.wgsl",
    };
    let sum = (schedule.split_k() > 1).then_some("matmul-sum.wgsl");
    let transpose = matches!(schedule, GpuMatmul::Cooperative(it) if it.transpose).then_some("transpose.wgsl");
    [Some(own), sum, transpose].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    fn text(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(name)).unwrap()
    }

    #[test]
    fn every_file_of_the_folder_is_a_template_and_every_template_a_file() {
        let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")).unwrap();
        let mut names: Vec<_> = folder.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, TEMPLATES);
    }

    #[test]
    fn what_a_template_includes_is_known() {
        for name in TEMPLATES {
            let text = text(name);
            let named: Vec<_> = TEMPLATES.iter().filter(|it| text.contains(&format!("\"{it}\""))).copied().collect();
            let known = INCLUDES.iter().find(|it| it.0 == *name).map_or(&[][..], |it| it.1);
            assert_eq!(named, known, "{name}");
        }
    }
}
