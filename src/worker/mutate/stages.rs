//! Wrong meanings: code is generated from stages that differ from the block's in one thing. Judged against the block's own
//! stages (`ir/`) the code is wrong; judged against the changed ones (`graph/`) it is right, and only their meaning is not.

use super::{Body, Mutation};
use kernelforge::{
    manifest::spec::{Activation, Dtype},
    plan::stage::{Factor, Role, Stage, StageGraph, StageOp, TensorId},
    protocol::mutation::Family,
};

struct Edits<'a> {
    graph: &'a StageGraph,
    index: usize,
    all: Vec<Mutation>,
}

pub fn mutations(graph: &StageGraph) -> Vec<Mutation> {
    let stages = graph.stages.iter().enumerate();
    stages
        .flat_map(|(index, stage)| {
            let mut edits = Edits { graph, index, all: Vec::new() };
            edits.operation(stage);
            edits.operands(stage);
            edits.all
        })
        .collect()
}

impl Edits<'_> {
    fn push(&mut self, id: &str, description: impl Into<String>, edit: impl FnOnce(&mut Stage)) {
        let mut graph = self.graph.clone();
        let stage = &mut graph.stages[self.index];
        edit(stage);
        if *stage != self.graph.stages[self.index] {
            let (name, description) = (stage.name.clone(), description.into());
            let mistake = if id.starts_with("operand-") { "operand" } else { id };
            let kind = (Family::Ir, format!("{}/{mistake}", self.graph.stages[self.index].op.name()));
            let mut push = |id: String, description: String, body| {
                self.all.push(Mutation::new(kind.clone(), id, Some(&name), description, body));
            };
            push(format!("ir/{name}/{id}"), description.clone(), Body::Ir(Box::new(graph.clone())));
            // Stages whose operands do not fit have no reference.
            if id != "depth-minus-one" {
                let description = format!("the passes' result is wrong: {description}");
                push(format!("graph/{name}/{id}"), description, Body::Graph(Box::new(graph)));
            }
        }
    }

    /// What the stage's result is stored as.
    fn dtype(&self) -> Dtype {
        self.graph.tensor(self.graph.stages[self.index].output).dtype
    }

    fn op(&mut self, id: &str, description: impl Into<String>, op: StageOp) {
        self.push(id, description, |it| it.op = op);
    }

    fn operation(&mut self, stage: &Stage) {
        match stage.op.clone() {
            StageOp::Matmul { m, n, k, bias, activation, residual } => {
                if bias {
                    self.push("bias-dropped", "the bias is not added", |it| {
                        it.op = StageOp::Matmul { m, n, k, bias: false, activation, residual };
                        it.inputs.remove(2);
                    });
                }
                if residual {
                    self.push("residual-dropped", "the residual is not added", |it| {
                        it.op = StageOp::Matmul { m, n, k, bias, activation, residual: false };
                        it.inputs.pop();
                    });
                }
                for (id, description, other) in activations(activation) {
                    self.op(&id, description, StageOp::Matmul { m, n, k, bias, activation: other, residual });
                }
                if k > 1 {
                    let op = StageOp::Matmul { m, n, k: k - 1, bias, activation, residual };
                    self.op("depth-minus-one", "K - 1 terms, and rows that are one element shorter", op);
                }
            }
            StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale } => {
                let with = |scale| StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale };
                let d = head_dim as f64;
                self.op("scale-missing", "the scores are not scaled", with(1.0));
                self.op("scale-squared", "the scores are scaled by 1 / d", with(scale * scale));
                self.op("scale-of-d-plus-1", "scaled by 1 / sqrt(d + 1)", with(scale * (d / (d + 1.0)).sqrt()));
                self.op("scale-of-d-minus-1", "scaled by 1 / sqrt(d - 1)", with(scale * (d / (d - 1.0)).sqrt()));
                // What a result of 11 bits, or 8, can show.
                let power = match self.dtype() {
                    Dtype::F32 => 20,
                    Dtype::F16 => 7,
                    Dtype::Bf16 => 4,
                };
                let off = scale * (1.0 + 2f64.powi(-power));
                self.op("scale-slightly-off", format!("the scale is off by one part in 2^{power}"), with(off));
                self.op("scale-negative", "the largest score becomes the smallest", with(-scale));
                self.op("uniform", "every key gets the same weight", with(0.0));
                let mask = StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal: !causal, scale };
                self.op("mask-inverted", if causal { "no causal mask" } else { "a causal mask" }, mask);
                for (id, kv_heads) in [("one-kv-head", 1), ("as-many-kv-heads-as-heads", heads)] {
                    let op = StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale };
                    self.op(id, "keys and values of other heads", op);
                }
                if batch > 1 {
                    let op =
                        StageOp::Attention { batch: 1, seq: seq * batch, heads, kv_heads, head_dim, causal, scale };
                    self.op("batches-merged", "every sequence sees the others", op);
                }
                if seq % 2 == 0 {
                    let op =
                        StageOp::Attention { batch: 2 * batch, seq: seq / 2, heads, kv_heads, head_dim, causal, scale };
                    self.op("sequence-halved", "no row sees the other half of its sequence", op);
                }
            }
            StageOp::LayerNorm { rows, width, eps } => {
                for (id, eps) in epsilons(eps, self.dtype()) {
                    self.op(id, format!("epsilon = {eps:e}"), StageOp::LayerNorm { rows, width, eps });
                }
                self.push("mean-kept", "the mean is not subtracted, the bias not added", |it| {
                    it.op = StageOp::RmsNorm { rows, width, eps };
                    it.inputs.truncate(2);
                });
            }
            StageOp::RmsNorm { rows, width, eps } => {
                for (id, eps) in epsilons(eps, self.dtype()) {
                    self.op(id, format!("epsilon = {eps:e}"), StageOp::RmsNorm { rows, width, eps });
                }
                self.push("mean-subtracted", "layer norm instead of RMS norm", |it| {
                    it.op = StageOp::LayerNorm { rows, width, eps };
                    it.inputs.push(it.inputs[1]);
                });
            }
            StageOp::Rope { batch, seq, heads, head_dim } => {
                self.push("cos-and-sin-swapped", "the tables are swapped", |it| it.inputs.swap(1, 2));
                if seq % 2 == 0 {
                    let op = StageOp::Rope { batch: 2 * batch, seq: seq / 2, heads, head_dim };
                    self.op("position-restarts", "positions begin anew in the middle of a sequence", op);
                }
                if heads % 2 == 0 {
                    let op = StageOp::Rope { batch, seq, heads: heads / 2, head_dim: 2 * head_dim };
                    self.op("pairs-of-other-heads", "pairs reach into the next head", op);
                }
            }
            StageOp::Activation { rows, width, function } => {
                for (id, description, other) in activations(Some(function)) {
                    if let Some(function) = other {
                        self.op(&id, description, StageOp::Activation { rows, width, function });
                    }
                }
            }
            StageOp::Add { rows, width } => {
                self.op("multiplied", "a product instead of a sum", StageOp::Mul { rows, width });
            }
            StageOp::Mul { rows, width } => {
                self.op("added", "a sum instead of a product", StageOp::Add { rows, width });
            }
            StageOp::Scale { rows, width, factor } => {
                let value = factor.value();
                for (id, factor) in [("missing", 1.0), ("squared", value * value), ("negative", -value), ("zero", 0.0)]
                {
                    let op = StageOp::Scale { rows, width, factor: Factor::Value(factor) };
                    self.op(id, format!("scaled by {factor}"), op);
                }
            }
            StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual } => {
                for (id, description, other) in activations(Some(activation)) {
                    if let Some(activation) = other {
                        let op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual };
                        self.op(&id, description, op);
                    }
                }
                if residual {
                    self.push("residual-dropped", "the residual is not added", |it| {
                        it.op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual: false };
                        it.inputs.pop();
                    });
                }
                if bias {
                    let graph = self.graph;
                    self.push("biases-dropped", "no bias is added", |it| {
                        it.op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias: false, residual };
                        it.inputs.retain(|id| graph.tensor(*id).shape.len() > 1);
                    });
                }
                if gated {
                    let up = if bias { 3 } else { 2 };
                    self.push("gate-and-up-swapped", "the activation is applied to the other branch", |it| {
                        it.inputs.swap(1, up);
                    });
                }
            }
        }
    }

    /// Each operand replaced by others of its shape: what is read is a tensor that exists, and the wrong one.
    fn operands(&mut self, stage: &Stage) {
        for (position, &id) in stage.inputs.iter().enumerate() {
            let tensor = self.graph.tensor(id);
            let known = self.known_before(self.index);
            let others = known.into_iter().filter(|&it| {
                let other = self.graph.tensor(it);
                let parameter = |role| role == Role::Weight;
                it != id && other.shape == tensor.shape && parameter(other.role) == parameter(tensor.role)
            });
            // The nearest ones are the likeliest mistakes.
            let mut others: Vec<TensorId> = others.collect();
            others.sort_by_key(|it| it.0.abs_diff(id.0));
            for other in others.into_iter().take(2) {
                let (name, instead) = (&tensor.name, &self.graph.tensor(other).name);
                let (id, description) =
                    (format!("operand-{position}-is-{instead}"), format!("reads `{instead}` instead of `{name}`"));
                self.push(&id, description, |it| it.inputs[position] = other);
            }
        }
    }

    fn known_before(&self, index: usize) -> Vec<TensorId> {
        let given = self.graph.tensors.iter().enumerate().filter(|it| matches!(it.1.role, Role::Input | Role::Weight));
        let given = given.map(|it| TensorId(it.0));
        given.chain(self.graph.stages[..index].iter().map(|it| it.output)).collect()
    }
}

/// Where the variance is epsilon, a result is off by a quarter of what epsilon is off by: 2^-8 is 8 times the roundoff of f16, and
/// one percent less than that of bf16.
fn epsilons(eps: f64, dtype: Dtype) -> impl Iterator<Item = (&'static str, f64)> {
    let power = match dtype {
        Dtype::F32 => 17,
        Dtype::F16 => 6,
        Dtype::Bf16 => 3,
    };
    let all = [
        ("epsilon-slightly-off", eps * (1.0 + 2f64.powi(-power))),
        ("epsilon-times-10", eps * 10.0),
        ("epsilon-divided-by-10", eps / 10.0),
        ("epsilon-missing", 0.0),
        ("epsilon-one-percent-more", eps * 1.01),
    ];
    all.into_iter().filter(move |it| dtype != Dtype::Bf16 || it.0 != "epsilon-one-percent-more")
}

fn activations(actual: Option<Activation>) -> Vec<(String, String, Option<Activation>)> {
    let mut all = Vec::new();
    if actual.is_some() {
        all.push(("activation-dropped".to_owned(), "no activation".to_owned(), None));
    }
    for it in Activation::ALL.into_iter().filter(|it| Some(*it) != actual) {
        let instead = actual.map_or("none", Activation::name);
        all.push((format!("activation-is-{}", it.name()), format!("{} instead of {instead}", it.name()), Some(it)));
    }
    all
}
