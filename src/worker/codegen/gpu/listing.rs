//! All shaders of a program as one text that a person can read, and edit: `kernel.wgsl`.

use kernelforge::{
    plan::program::Program,
    protocol::{Failure, FailureKind},
};

/// What the first line of a shader begins with; no template has such a line.
const HEAD: &str = "//// shader ";

/// The text of all shaders, each under a line with its number, name and template.
pub fn listing(program: &Program, sources: &[String]) -> String {
    let shaders = program.shaders.iter().zip(sources).enumerate();
    let one = |(index, (shader, source)): (usize, (&kernelforge::plan::program::Shader, &String))| {
        format!("{HEAD}{index}: {} ({})\n{}\n\n", shader.name, shader.template, source.trim_end())
    };
    shaders.map(one).collect()
}

/// The shaders of an edited listing.
///
/// # Errors
/// `BadInput` when it has other shaders than the program.
pub fn parse(program: &Program, text: &str) -> Result<Vec<String>, Failure> {
    let mut sources: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with(HEAD) {
            sources.push(String::new());
        } else if let Some(source) = sources.last_mut() {
            source.push_str(line);
            source.push('\n');
        }
    }
    if sources.len() != program.shaders.len() {
        let message =
            format!("the file has {} shaders and the plan's program has {}", sources.len(), program.shaders.len());
        let hint = format!("every shader begins with a line `{HEAD}NUMBER: ...`, as in `out/BLOCK@TARGET/kernel.wgsl`");
        return Err(Failure::new(FailureKind::BadInput, message).with_hint(hint));
    }
    Ok(sources)
}
