//! One `[block.NAME]`: how its keys must fit together, and the instances that its lists make of it.

use super::{
    BlockInstance, DEFAULT,
    error::{At, Problem, ProblemKind, SourceFile, shown},
    schema::{Kind, MAX_ELEMENTS, Place},
    spec::{Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, NormKind, NormSpec, OperandB, Origin, RowsSpec},
    table::{self, Field, Fields, Item},
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};
use toml::{
    Spanned,
    de::{DeString, DeTable},
};

/// A block as written, its fields checked one by one.
pub struct Declared {
    pub name: String,
    /// The name in the table's header.
    pub at: At,
    kind: Option<Kind>,
    pub fields: Fields,
    /// No problem was found so far: instances can be made.
    sound: bool,
}

impl Declared {
    pub fn read(
        file: &Arc<SourceFile>,
        name: &Spanned<DeString<'_>>,
        table: &DeTable<'_>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let before = problems.len();
        let text = name.get_ref().as_ref();
        if !table::is_name(text) {
            problems.push(Problem::at(ProblemKind::BadName { what: "block", name: shown(text) }, file, name.span()));
        }
        let kind = table.get("kind").and_then(|it| Kind::from_name(it.get_ref().as_str()?));
        let fields = table::read(file, &Place::Block(shown(text), kind), name.span(), table, problems);
        let mut block = Self { name: text.to_owned(), at: At::new(file, name.span()), kind, fields, sound: false };
        block.check_heads(problems);
        block.sound = problems.len() == before;
        block
    }

    pub fn place(&self, span: &Range<usize>) -> At {
        At { file: Arc::clone(&self.at.file), span: span.clone() }
    }

    /// The relations between head counts and widths.
    fn check_heads(&self, problems: &mut Vec<Problem>) {
        let field = |key: &str| Some((self.fields.size(key)?, self.place(&self.fields.get(key)?.value)));
        let mut report = |kind, at: At, other: Option<(At, String)>| {
            let problem = Problem::new(kind, Some(at));
            problems.push(match other {
                Some((at, label)) => problem.and(at, label),
                None => problem,
            });
        };
        let Some((heads, heads_at)) = field("heads") else { return };
        if let Some((kv_heads, at)) = field("kv-heads")
            && heads % kv_heads != 0
        {
            let kind = ProblemKind::KvHeadsDoNotDivide { kv_heads, heads };
            report(kind, at, Some((heads_at.clone(), format!("{heads} heads"))));
        }
        let rope = self.fields.get("rope-theta").filter(|_| self.fields.number("rope-theta") != Some(0.0));
        if let Some((head_dim, at)) = field("head-dim") {
            if let (Some(rope), true) = (rope, head_dim % 2 == 1) {
                let other = (self.place(&rope.value), "a rotary embedding".to_owned());
                report(ProblemKind::OddHeadDim { head_dim, derived: false }, at, Some(other));
            }
            return;
        }
        let Some((d_model, d_model_at)) = field("d-model") else { return };
        if d_model % heads != 0 {
            let kind = ProblemKind::HeadsDoNotDivide { heads, d_model };
            report(kind, heads_at, Some((d_model_at, format!("d-model is {d_model}"))));
        } else if let (Some(rope), true) = (rope, d_model / heads % 2 == 1) {
            let other = (self.place(&rope.value), "a rotary embedding".to_owned());
            report(ProblemKind::OddHeadDim { head_dim: d_model / heads, derived: true }, heads_at, Some(other));
        }
    }

    /// One instance for every combination of the values that were given as lists; none where a problem was found.
    pub fn instances(&self, default_targets: &[String], problems: &mut Vec<Problem>) -> Vec<BlockInstance> {
        let Some(kind) = self.kind.filter(|_| self.sound) else { return Vec::new() };
        let text = |key: &str| self.fields.text(key).map(str::to_owned);
        let targets: Vec<_> = self.fields.texts("targets").map(|it| it.0.to_owned()).collect();
        let mut instances = Vec::new();
        for picks in self.picks() {
            let name = picks.iter().fold(self.name.clone(), |name, it| name + &it.suffix);
            let Some(spec) = spec(kind, &self.fields, &picks) else { continue };
            let elements = elements(&spec);
            if elements > MAX_ELEMENTS {
                let kind = ProblemKind::TooManyElements { instance: name, elements };
                problems.push(Problem::new(kind, Some(self.at.clone())));
                continue;
            }
            instances.push(BlockInstance {
                name,
                declared: self.name.clone(),
                group: text("group"),
                spec,
                targets: if targets.is_empty() { default_targets.to_vec() } else { targets.clone() },
                own_targets: !targets.is_empty(),
                pipeline: text("pipeline").unwrap_or_else(|| DEFAULT.to_owned()),
                tuning: text("tuning").unwrap_or_else(|| DEFAULT.to_owned()),
                origins: self.origins(&picks),
            });
        }
        instances
    }

    /// The choices of one value for each key that may be a list.
    fn picks(&self) -> Vec<Vec<Pick>> {
        let mut combinations = vec![Vec::new()];
        for (key, prefix) in [("seq", "-s"), ("m", "-m"), ("batch", "-b"), ("dtype", "-")] {
            let Some(field) = self.fields.get(key) else { continue };
            let extend = |picks: &Vec<Pick>| {
                let pick = |it: &(Item, Range<usize>)| Pick::new(key, prefix, field, it);
                field.items.iter().map(|it| [picks.clone(), vec![pick(it)]].concat()).collect::<Vec<_>>()
            };
            combinations = combinations.iter().flat_map(extend).collect();
        }
        combinations
    }

    fn origins(&self, picks: &[Pick]) -> BTreeMap<String, Origin> {
        let origin = |span: &Range<usize>| {
            let (line, column) = self.at.file.position(span.start);
            Origin { file: self.at.file.path.clone(), line, column }
        };
        let mut origins: BTreeMap<_, _> =
            self.fields.iter().map(|(key, field)| (key.to_owned(), origin(&field.key))).collect();
        origins.extend(picks.iter().filter(|it| !it.suffix.is_empty()).map(|it| (it.key.to_owned(), origin(&it.at))));
        origins.insert(String::new(), origin(&self.at.span));
        origins
    }
}

/// The value that one instance has of a key that may be a list.
#[derive(Clone)]
struct Pick {
    key: &'static str,
    item: Item,
    at: Range<usize>,
    /// What the instance's name gets; nothing unless a list was given.
    suffix: String,
}

impl Pick {
    fn new(key: &'static str, prefix: &str, field: &Field, (item, at): &(Item, Range<usize>)) -> Self {
        let suffix = match item {
            Item::Size(size) if field.list => format!("{prefix}{size}"),
            Item::Text(text) if field.list => format!("{prefix}{text}"),
            _ => String::new(),
        };
        Self { key, item: item.clone(), at: at.clone(), suffix }
    }
}

/// The resolved block; nothing where a required key is missing, which has been reported.
fn spec(kind: Kind, fields: &Fields, picks: &[Pick]) -> Option<BlockSpec> {
    let picked = |key: &str| match picks.iter().find(|it| it.key == key)?.item {
        Item::Size(size) => Some(size),
        _ => None,
    };
    let size = |key: &str| fields.size(key);
    let flag = |key: &str, default: bool| fields.flag(key).unwrap_or(default);
    let rows = || Some(RowsSpec { batch: picked("batch").unwrap_or(1), seq: picked("seq")? });
    let activation = fields.text("activation").and_then(Activation::from_name);
    let norm = NormSpec {
        kind: if fields.text("norm") == Some("rms-norm") { NormKind::RmsNorm } else { NormKind::LayerNorm },
        eps: fields.number("norm-eps").unwrap_or(1e-5),
    };
    let bias = flag("bias", kind != Kind::Matmul);
    let b = fields.text("b").and_then(OperandB::from_name).unwrap_or_default();
    let attention = || {
        let (d_model, heads) = (size("d-model")?, size("heads")?);
        Some(AttentionSpec {
            d_model,
            heads,
            kv_heads: size("kv-heads").unwrap_or(heads),
            head_dim: size("head-dim").unwrap_or(d_model / heads),
            qkv_bias: flag("qkv-bias", bias),
            // A microblock has no output projection.
            out_bias: bias && kind != Kind::TransformerMicroblock,
            causal: flag("causal", false),
            rope_theta: fields.number("rope-theta").unwrap_or(0.0),
        })
    };
    let mlp = || {
        let activation = activation.unwrap_or(Activation::GeluTanh);
        Some(MlpSpec { d_model: size("d-model")?, d_ff: size("d-ff")?, activation, gated: flag("gated", false), bias })
    };
    let dtype = match &picks.iter().find(|it| it.key == "dtype").map(|it| &it.item) {
        Some(Item::Text(name)) => Dtype::from_name(name)?,
        _ => Dtype::F32,
    };
    Some(match kind {
        Kind::Transformer => {
            BlockSpec::Transformer { rows: rows()?, attention: attention()?, norm, mlp: mlp()?, dtype }
        }
        Kind::TransformerMicroblock => {
            BlockSpec::TransformerMicroblock { rows: rows()?, attention: attention()?, norm, dtype }
        }
        Kind::Microblock => BlockSpec::Microblock { m: picked("m")?, n: size("n")?, k: size("k")?, bias, norm, dtype },
        Kind::Attention => BlockSpec::Attention { rows: rows()?, attention: attention()?, dtype },
        Kind::Mlp => BlockSpec::Mlp { rows: rows()?, mlp: mlp()?, dtype },
        Kind::Matmul => BlockSpec::Matmul { m: picked("m")?, n: size("n")?, k: size("k")?, b, bias, activation, dtype },
        Kind::LayerNorm => BlockSpec::LayerNorm { rows: rows()?, d_model: size("d-model")?, norm, dtype },
    })
}

/// Elements of the block's inputs, weights, largest intermediate values and output. The limits of single sizes keep it far
/// from overflow.
fn elements(spec: &BlockSpec) -> u128 {
    let rows = |it: &RowsSpec| it.batch as u128 * it.seq as u128;
    let attention = |rows: u128, it: &AttentionSpec| {
        let (q, kv) = ((it.heads as u128) * it.head_dim as u128, (it.kv_heads as u128) * it.head_dim as u128);
        let d_model = it.d_model as u128;
        2 * d_model * (q + kv) + 2 * rows * (d_model + q + kv)
    };
    let mlp = |rows: u128, it: &MlpSpec| {
        let (d_model, d_ff, ups) = (it.d_model as u128, it.d_ff as u128, if it.gated { 2 } else { 1 });
        d_model * d_ff * (1 + ups) + rows * (2 * d_model + ups * d_ff)
    };
    let product = |m: usize, n: usize, k: usize| {
        let (m, n, k) = (m as u128, n as u128, k as u128);
        m * k + k * n + m * n
    };
    match spec {
        BlockSpec::Transformer { rows: r, attention: a, mlp: f, .. } => attention(rows(r), a) + mlp(rows(r), f),
        BlockSpec::TransformerMicroblock { rows: r, attention: a, .. }
        | BlockSpec::Attention { rows: r, attention: a, .. } => attention(rows(r), a),
        BlockSpec::Mlp { rows: r, mlp: f, .. } => mlp(rows(r), f),
        BlockSpec::Microblock { m, n, k, .. } | BlockSpec::Matmul { m, n, k, .. } => product(*m, *n, *k),
        BlockSpec::LayerNorm { rows: r, d_model, .. } => 2 * rows(r) * *d_model as u128,
    }
}
