//! Where the block entry keeps intermediate values: values whose lifetimes do not meet share memory.

use kernelforge::plan::{
    kernel::Placement,
    stage::{Role, StageGraph, TensorId},
};

/// Cache line: every placement starts on one.
const ALIGN: usize = 64;

/// Bytes rounded up to whole cache lines.
pub fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// Places every value of the graph and returns the placements with their total size in bytes.
///
/// First fit in order of definition: a value takes the lowest gap that is free while it lives, that is from the stage
/// that computes it to the last that reads it, both included, so that no stage's output overlaps its inputs.
pub fn place(graph: &StageGraph) -> (Vec<Placement>, usize) {
    struct Live {
        tensor: TensorId,
        offset: usize,
        bytes: usize,
        last: usize,
    }
    let mut live: Vec<Live> = Vec::new();
    let (mut placements, mut total) = (Vec::new(), 0);
    for (index, stage) in graph.stages.iter().enumerate() {
        live.retain(|it| it.last >= index);
        let tensor = stage.output;
        if graph.tensor(tensor).role != Role::Value {
            continue;
        }
        let last = graph.stages.iter().rposition(|it| it.inputs.contains(&tensor)).unwrap_or(index);
        let bytes = aligned(graph.tensor(tensor).bytes());
        live.sort_by_key(|it| it.offset);
        let mut offset = 0;
        for other in &live {
            if offset + bytes <= other.offset {
                break;
            }
            offset = offset.max(other.offset + other.bytes);
        }
        live.push(Live { tensor, offset, bytes, last });
        total = total.max(offset + bytes);
        placements.push(Placement { tensor, offset });
    }
    debug_assert!(live.iter().all(|it| it.tensor.0 < graph.tensors.len()));
    (placements, total)
}
