//! Wrong calls of right code: what `kernel.json` says about units, argument tables, packed weights and workspaces.

use super::{Body, Mutation, Subject};
use crate::measure::tamper::Tamper;
use kernelforge::{
    plan::{
        kernel::{Arg, Entry, Kernel},
        stage::Role,
    },
    protocol::mutation::Family,
};

pub fn mutations(subject: &Subject) -> Vec<Mutation> {
    let kernel = subject.kernel;
    let mut all = Vec::new();
    let mut push = |id: String, stage: Option<&str>, description: &str, edit: &dyn Fn(&mut Kernel)| {
        let mut changed = kernel.clone();
        edit(&mut changed);
        if &changed != kernel {
            let body = Body::Host(Box::new(changed));
            let kind = (Family::Host, description.to_owned());
            all.push(Mutation::new(kind, format!("host/{id}"), stage, description.to_owned(), body));
        }
    };
    for (index, stage) in kernel.graph.stages.iter().enumerate() {
        let (entry, name) = (&kernel.stages[index], stage.name.as_str());
        for (id, description, edit) in calls(entry) {
            push(format!("{name}/{id}"), Some(name), description, &|it| edit(&mut it.stages[index]));
        }
        for at in 1..entry.args.len() {
            let id = format!("{name}/arguments-{}-{at}-swapped", at - 1);
            push(id, Some(name), "two entries of the argument table are swapped", &|it| {
                it.stages[index].args.swap(at - 1, at);
            });
        }
        if let Some(&input) = stage.inputs.first() {
            push(format!("{name}/output-aliased"), Some(name), "the output is written over the input", &|it| {
                replace(&mut it.stages[index], Arg::Tensor(stage.output), Arg::Tensor(input));
            });
        }
        if let Some(other) = kernel.graph.stages.get(index + 1) {
            push(format!("{name}/late"), Some(name), &format!("runs after `{}`", other.name), &|it| {
                it.stages.swap(index, index + 1);
            });
        }
    }
    // Its units are not mutated: the block's entry does all its work whatever range it is given.
    for at in 1..kernel.block.args.len() {
        push(
            format!("block/arguments-{}-{at}-swapped", at - 1),
            None,
            "two entries of the argument table are swapped",
            &|it| {
                it.block.args.swap(at - 1, at);
            },
        );
    }
    let first = |role| kernel.graph.with_role(role).next().map(|it| Arg::Tensor(it.0));
    if let (Some(input), Some(output)) = (first(Role::Input), first(Role::Output)) {
        push("block/output-aliased".to_owned(), None, "the output is written over the input", &|it| {
            replace(&mut it.block, output, input);
        });
    }
    for (index, packed) in kernel.packed.iter().enumerate() {
        let name = &kernel.graph.tensor(packed.weight).name;
        push(format!("packed/{name}/never"), None, "the weight is never packed", &|it| {
            it.packed[index].prepare.units = 0;
        });
        push(format!("packed/{name}/last-panel-missing"), None, "the last panel of the weight is not packed", &|it| {
            it.packed[index].prepare.units -= 1;
        });
        let shape = &kernel.graph.tensor(packed.weight).shape;
        let other = kernel.graph.with_role(Role::Weight).find(|it| it.0 != packed.weight && &it.1.shape == shape);
        if let Some((other, _)) = other {
            push(format!("packed/{name}/from-another"), None, "another weight of the same shape is packed", &|it| {
                replace(&mut it.packed[index].prepare, Arg::Tensor(packed.weight), Arg::Tensor(other));
            });
        }
        let same = kernel.packed.iter().position(|it| it.bytes == packed.bytes && it.weight != packed.weight);
        if let Some(other) = same {
            push(format!("packed/{name}/read-another"), None, "a stage reads another packed weight", &|it| {
                let entries = it.stages.iter_mut().chain([&mut it.block]);
                entries.for_each(|it| replace(it, Arg::Packed(index), Arg::Packed(other)));
            });
        }
    }
    all
}

/// Wrong measurements of right kernels.
pub fn measurements() -> impl Iterator<Item = Mutation> {
    let all = [
        ("slow-clock", "the clock counts one nanosecond of a thousand", Tamper::SlowClock),
        ("half-the-units", "timed runs do half of their units", Tamper::HalfTheUnits),
        ("first-result-kept", "only the first of the timed runs computes anything", Tamper::FirstResultKept),
    ];
    all.into_iter().map(|(id, description, tamper)| {
        let (kind, id) = ((Family::Host, id.to_owned()), format!("host/measured/{id}"));
        Mutation::new(kind, id, None, description.to_owned(), Body::Measured(tamper))
    })
}

type Edit = (&'static str, &'static str, fn(&mut Entry));

fn calls(entry: &Entry) -> Vec<Edit> {
    let mut edits: Vec<Edit> = vec![("never-called", "none of its units is done", |it| it.units = 0)];
    if entry.workspace > 0 {
        // Its last bytes alone would be the padding of a row.
        edits.push(("workspace-halved", "the workspace has half of its size", |it| it.workspace /= 2));
    }
    if entry.units > 1 {
        edits.push(("last-unit-missing", "the last unit is not done", |it| it.units -= 1));
    }
    if entry.units > 0 {
        edits.push(("one-unit-too-many", "a unit beyond the last is done", |it| it.units += 1));
    }
    edits
}

fn replace(entry: &mut Entry, from: Arg, to: Arg) {
    entry.args.iter_mut().filter(|it| **it == from).for_each(|it| *it = to);
}
