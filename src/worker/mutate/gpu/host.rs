//! Wrong calls of right shaders: what `kernel.json` says about dispatches, bindings, packed weights and shared buffers.

use kernelforge::plan::{
    program::{Access, Buffer, Dispatch, Program, Step},
    stage::Role,
};

/// An edited program: id, stage, description.
pub type Edited = (String, Option<String>, &'static str, Program);

pub fn edits(program: &Program) -> Vec<Edited> {
    let mut all: Vec<Edited> = Vec::new();
    let mut push = |id: String, stage: Option<&str>, description: &'static str, edit: &dyn Fn(&mut Program)| {
        let mut changed = program.clone();
        edit(&mut changed);
        if changed != *program {
            all.push((id, stage.map(str::to_owned), description, changed));
        }
    };
    for (index, stage) in program.graph.stages.iter().enumerate() {
        let name = stage.name.as_str();
        let steps = &program.stages[index];
        for (at, step) in steps.iter().enumerate() {
            let Step::Dispatch(dispatch) = step else { continue };
            for axis in 0..3 {
                if dispatch.workgroups[axis] > 1 {
                    let id = format!("{name}/{at}/workgroups-{axis}-one-less");
                    push(id, Some(name), "one row of workgroups is not dispatched", &|it| {
                        edit_dispatch(it, index, at, |it| it.workgroups[axis] -= 1);
                    });
                }
            }
            for second in 1..dispatch.bindings.len() {
                if dispatch.bindings[second].access != dispatch.bindings[second - 1].access {
                    continue;
                }
                let id = format!("{name}/{at}/bindings-{}-{second}-swapped", second - 1);
                push(id, Some(name), "two bindings are swapped", &|it| {
                    edit_dispatch(it, index, at, |it| {
                        let (a, b) = (it.bindings[second - 1].buffer, it.bindings[second].buffer);
                        (it.bindings[second - 1].buffer, it.bindings[second].buffer) = (b, a);
                    });
                });
            }
            push(format!("{name}/{at}/not-dispatched"), Some(name), "a dispatch is left out", &|it| {
                // Taken out, its shader would have no bindings and not compile.
                edit_dispatch(it, index, at, |it| it.workgroups = [0; 3]);
            });
        }
        if steps.len() > 1 {
            push(format!("{name}/reversed"), Some(name), "the dispatches run in another order", &|it| {
                it.stages[index].reverse();
            });
        }
        if let Some(&input) = stage.inputs.first()
            && program.graph.tensor(input).len() >= program.graph.tensor(stage.output).len()
        {
            push(format!("{name}/output-aliased"), Some(name), "the result is written over the input", &|it| {
                for step in &mut it.stages[index] {
                    if let Step::Dispatch(dispatch) = step {
                        replace(dispatch, Buffer::Tensor(stage.output), Buffer::Tensor(input));
                    }
                }
            });
        }
    }
    // Two values that live at the same time in one buffer of the block.
    for (at, (buffer, slot)) in program.placements.iter().enumerate() {
        let other = program.placements.iter().find(|it| it.1 != *slot && alive_together(program, *buffer, it.0));
        if let Some(&(_, other)) = other {
            push(
                format!("block/{at}/value-misplaced"),
                None,
                "two values of the block share a buffer at one time",
                &|it| {
                    it.placements[at].1 = other;
                    it.shared[other] = it.shared[other].max(it.shared[*slot]);
                },
            );
        }
    }
    all
}

fn edit_dispatch(program: &mut Program, stage: usize, step: usize, edit: impl FnOnce(&mut Dispatch)) {
    if let Step::Dispatch(dispatch) = &mut program.stages[stage][step] {
        edit(dispatch);
    }
}

/// Writes to `from` go to `to`, and no read of `to` stays apart: a binding may not be both.
fn replace(dispatch: &mut Dispatch, from: Buffer, to: Buffer) {
    for binding in &mut dispatch.bindings {
        if binding.buffer == from && binding.access == Access::ReadWrite {
            binding.buffer = to;
        }
    }
}

/// Whether one is read by the stage that makes the other.
fn alive_together(program: &Program, a: Buffer, b: Buffer) -> bool {
    let (Buffer::Tensor(a), Buffer::Tensor(b)) = (a, b) else { return false };
    let value = |id| program.graph.tensor(id).role == Role::Value;
    value(a) && value(b) && program.graph.stages.iter().any(|it| it.output == a && it.inputs.contains(&b))
}
