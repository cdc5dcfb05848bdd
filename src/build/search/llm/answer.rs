//! What of a model's answer is a schedule to try, and for everything else the reason why not.

use super::{document, names, short};
use crate::{
    build::search::propose::Problem,
    manifest::error::list,
    plan::{
        constraint,
        gpu::attention::GpuAttention,
        read::{self, ProblemKind},
        schedule::Schedule,
        space::Space,
    },
};
use serde_json::{Value, json};

/// The field of the answer that has the schedules, and one for the model to think in, which nobody reads.
const SCHEDULES: &str = "schedules";
const REASONING: &str = "reasoning";
/// Mistakes of one schedule that are told.
const TOLD: usize = 3;

/// The JSON schema that the answer to a problem is asked to have.
pub fn schema(problem: &Problem) -> Value {
    let wanted = |method: &str| match &problem.heuristic {
        Schedule::GpuAttention(_) => (method == "host-softmax") == problem.hybrid_softmax,
        _ => true,
    };
    // Every schedule has a kernel of the tables.
    let schedule = read::schema(problem.heuristic.name(), &wanted).unwrap_or_default();
    json!({
        "type": "object",
        "properties": {
            REASONING: { "type": "string" },
            SCHEDULES: { "type": "array", "items": schedule },
        },
        "required": [REASONING, SCHEDULES],
        "additionalProperties": false,
    })
}

/// An answer, read.
#[derive(Debug, Default, PartialEq)]
pub struct Judged {
    /// Legal, in the order of the answer.
    pub schedules: Vec<Schedule>,
    /// Why the others are not among them, in words for the model.
    pub reasons: Vec<String>,
}

/// Reads an answer to which `asked` schedules were wanted. Nothing in it is believed.
pub fn judge(text: &str, problem: &Problem, asked: usize) -> Judged {
    let mut judged = Judged::default();
    let mut items = match schedules(text) {
        Ok(items) => items,
        Err(reason) => {
            judged.reasons.push(reason);
            return judged;
        }
    };
    if items.len() > asked {
        judged.reasons.push(format!("{} schedules were given: only the first {asked} are read", items.len()));
        items.truncate(asked);
    }
    let restricted = problem.restricted_space();
    for (number, item) in items.into_iter().enumerate() {
        match schedule(item, &format!("{SCHEDULES}[{number}]"), (problem, restricted.as_ref())) {
            Ok(schedule) => judged.schedules.push(schedule),
            Err(reason) => judged.reasons.push(reason),
        }
    }
    judged
}

fn schedules(text: &str) -> Result<Vec<Value>, String> {
    let Value::Object(mut answer) = document::find(text, SCHEDULES)? else {
        return Err("the answer must be an object".to_owned()); // nothing else is looked for
    };
    let known = [SCHEDULES, REASONING];
    if let Some(field) = answer.keys().find(|it| !known.contains(&it.as_str())) {
        let field = short(field);
        return Err(format!("the answer does not take the field `{field}`: its fields are {}", list(&known)));
    }
    match answer.remove(SCHEDULES) {
        Some(Value::Array(items)) if items.is_empty() => Err(format!("`{SCHEDULES}` is an empty list")),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(format!("`{SCHEDULES}` must be a list of schedules")),
        None => Err(format!("the answer lacks `{SCHEDULES}`")),
    }
}

/// One schedule. `restricted` is the space, where the search may not choose from all of it.
fn schedule(item: Value, path: &str, (problem, restricted): (&Problem, Option<&Space>)) -> Result<Schedule, String> {
    let text = names::normalise(item, path, &problem.device)?.to_string();
    let schedule = read::schedule(&text, path).map_err(|problems| {
        let told = problems.iter().take(TOLD).map(|it| explained(&it.kind)).collect::<Vec<_>>().join("; ");
        match problems.len().saturating_sub(TOLD) {
            0 => told,
            more => format!("{told}; and {more} more mistakes"),
        }
    })?;
    if let Schedule::GpuAttention(it) = &schedule
        && matches!(it, GpuAttention::HostSoftmax(_)) != problem.hybrid_softmax
    {
        let rule = if problem.hybrid_softmax { "only `host-softmax` is" } else { "`host-softmax` is not" };
        return Err(format!("`{path}.method`: {rule} wanted for this target"));
    }
    let stage = problem.stage();
    let dtype = problem.operation.tensor(stage.output).dtype;
    constraint::check(stage, dtype, &schedule, &problem.device)
        .and_then(|()| constraint::check_operands(&problem.operation, stage, &schedule))
        .map_err(|it| format!("`{path}`: {it}"))?;
    if let Some(space) = restricted {
        space.admits(&schedule).map_err(|it| format!("`{path}`: {it}"))?;
    }
    Ok(schedule)
}

/// The mistake, and where it helps what is known instead.
fn explained(kind: &ProblemKind) -> String {
    match kind {
        ProblemKind::UnknownField { known, .. } | ProblemKind::NotOneOf { known, .. } => {
            format!("{kind} (known: {})", list(known))
        }
        _ => kind.to_string(),
    }
}
