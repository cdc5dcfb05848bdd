//! Which values and scratch buffers share memory in a run of the block.

use kernelforge::plan::{
    program::Buffer,
    stage::{Role, StageGraph, TensorId},
};
use std::ops::{Range, RangeInclusive};

/// A buffer and the stages during which it must keep its content.
struct Life {
    buffer: Buffer,
    bytes: u64,
    stages: RangeInclusive<usize>,
}

/// Sizes of the shared buffers, and which of them each value and scratch buffer has. `scratch`: the scratch buffers of each
/// stage; `bytes`: the size of each. Largest first, each into the first shared buffer that is free while it lives: whole
/// buffers, because a shader's view of one must not overlap another view that is written.
pub fn place(graph: &StageGraph, scratch: &[Range<usize>], bytes: &[u64]) -> (Vec<u64>, Vec<(Buffer, usize)>) {
    let mut lives = Vec::new();
    for (id, tensor) in graph.with_role(Role::Value) {
        let made = graph.stages.iter().position(|it| it.output == id);
        let read = graph.stages.iter().rposition(|it| it.inputs.contains(&id));
        let (Some(made), buffer) = (made, Buffer::Tensor(TensorId(id.0))) else { continue };
        let stages = made..=read.unwrap_or(made).max(made);
        lives.push(Life { buffer, bytes: tensor.bytes() as u64, stages });
    }
    for (stage, indices) in scratch.iter().enumerate() {
        for index in indices.clone() {
            lives.push(Life { buffer: Buffer::Scratch(index), bytes: bytes[index], stages: stage..=stage });
        }
    }
    lives.sort_by_key(|it| (std::cmp::Reverse(it.bytes), it.buffer));
    let (mut shared, mut placements): (Vec<(u64, Vec<RangeInclusive<usize>>)>, _) = (Vec::new(), Vec::new());
    for Life { buffer, bytes, stages } in lives {
        let free = |(_, taken): &(u64, Vec<RangeInclusive<usize>>)| {
            taken.iter().all(|it| it.end() < stages.start() || stages.end() < it.start())
        };
        let slot = shared.iter().position(free).unwrap_or_else(|| {
            shared.push((bytes, Vec::new()));
            shared.len() - 1
        });
        shared[slot].1.push(stages);
        placements.push((buffer, slot));
    }
    placements.sort_unstable();
    (shared.into_iter().map(|it| it.0).collect(), placements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::samples;

    #[test]
    fn two_that_live_at_the_same_time_never_share() {
        let graph = samples::graph(&samples::gpt());
        let scratch: Vec<_> = (0..graph.stages.len()).map(|it| it..it + 1).collect();
        let bytes: Vec<u64> = (0..graph.stages.len() as u64).map(|it| 100 + it * 64 % 300).collect();
        let (shared, placements) = place(&graph, &scratch, &bytes);
        assert!(shared.len() < placements.len(), "nothing is shared: {placements:?}");
        let life = |buffer: Buffer| match buffer {
            Buffer::Tensor(id) => {
                let made = graph.stages.iter().position(|it| it.output == id).unwrap();
                made..=graph.stages.iter().rposition(|it| it.inputs.contains(&id)).unwrap_or(made)
            }
            Buffer::Scratch(index) => index..=index,
            Buffer::Packed(_) => unreachable!(),
        };
        for (index, (a, slot)) in placements.iter().enumerate() {
            let size = match a {
                Buffer::Tensor(id) => graph.tensor(*id).bytes() as u64,
                Buffer::Scratch(index) => bytes[*index],
                Buffer::Packed(_) => unreachable!(),
            };
            assert!(shared[*slot] >= size);
            for (b, other) in &placements[index + 1..] {
                let (a, b) = (life(*a), life(*b));
                assert!(slot != other || a.end() < b.start() || b.end() < a.start(), "{placements:?}");
            }
        }
    }
}
