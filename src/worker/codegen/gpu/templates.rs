//! The WGSL templates: those of `shaders/`, which are part of this binary, and a project's own, which replace the one of the
//! same name.

use kernelforge::protocol::{Failure, FailureKind};
use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use std::collections::BTreeMap;

/// Name and text of every template, `shaders/` without the folder.
const BUILT_IN: &[(&str, &str)] = &[
    ("attention-cooperative.wgsl", include_str!("../../../../shaders/attention-cooperative.wgsl")),
    ("attention-online.wgsl", include_str!("../../../../shaders/attention-online.wgsl")),
    ("attention-scores.wgsl", include_str!("../../../../shaders/attention-scores.wgsl")),
    ("attention-weighted.wgsl", include_str!("../../../../shaders/attention-weighted.wgsl")),
    ("elementwise.wgsl", include_str!("../../../../shaders/elementwise.wgsl")),
    ("epilogue.wgsl", include_str!("../../../../shaders/epilogue.wgsl")),
    ("math.wgsl", include_str!("../../../../shaders/math.wgsl")),
    ("matmul-cooperative.wgsl", include_str!("../../../../shaders/matmul-cooperative.wgsl")),
    ("matmul-gemv.wgsl", include_str!("../../../../shaders/matmul-gemv.wgsl")),
    ("matmul-order.wgsl", include_str!("../../../../shaders/matmul-order.wgsl")),
    ("matmul-sum.wgsl", include_str!("../../../../shaders/matmul-sum.wgsl")),
    ("matmul-tiled.wgsl", include_str!("../../../../shaders/matmul-tiled.wgsl")),
    ("norm.wgsl", include_str!("../../../../shaders/norm.wgsl")),
    ("rope.wgsl", include_str!("../../../../shaders/rope.wgsl")),
];

pub struct Templates {
    environment: Environment<'static>,
}

impl Templates {
    /// The built-in templates with `own` in place of those of the same name.
    ///
    /// # Errors
    /// `BadInput` for a template that does not parse, with its name and line, or that replaces nothing.
    pub fn new(own: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let mut environment = Environment::new();
        // A line with nothing but a tag leaves nothing behind.
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(|it| broken("", &it))?;
        // WGSL has braces of its own, but no `{{`, `{%` or `{#`.
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        if let Some(name) = own.keys().find(|it| !BUILT_IN.iter().any(|(name, _)| name == it)) {
            let known: Vec<_> = BUILT_IN.iter().map(|it| it.0).collect();
            let failure = Failure::new(FailureKind::BadInput, format!("shaders/{name}: replaces no built-in template"));
            return Err(failure.with_hint(format!("there are {}", known.join(", "))));
        }
        for (name, text) in BUILT_IN {
            let text = own.get(*name).cloned().unwrap_or_else(|| (*text).to_owned());
            environment.add_template_owned(*name, text).map_err(|it| broken(name, &it))?;
        }
        Ok(Self { environment })
    }

    /// The template with the values of `context` filled in.
    ///
    /// # Errors
    /// `BadInput` with the template's own line.
    pub fn render(&self, name: &str, context: impl Serialize) -> Result<String, Failure> {
        let template = self.environment.get_template(name).map_err(|it| broken(name, &it))?;
        template.render(Serde(context)).map_err(|it| broken(name, &it))
    }
}

fn broken(name: &str, error: &minijinja::Error) -> Failure {
    let line = error.line().map(|it| format!(":{it}")).unwrap_or_default();
    let detail = error.detail().map(|it| format!(": {it}")).unwrap_or_default();
    Failure::new(FailureKind::BadInput, format!("shaders/{name}{line}: {}{detail}", error.kind()))
}
