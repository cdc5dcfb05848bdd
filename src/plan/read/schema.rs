//! The [`tables`](super::tables) as JSON schema, for whoever is to write a schedule.

use super::tables::{
    KERNELS, Methods,
    Shape::{self, Count, Flag, Object, OneOf, Word},
    Table,
};
use serde_json::{Map, Value, json};

/// The JSON schema of a schedule of this kernel, e.g. `gpu-matmul`; of a kernel's methods those that are `wanted`. It
/// is of the part of JSON schema that inference servers can hold a model to: every field required, no other field, no
/// ranges (they depend on shape and device, and [`crate::plan::constraint`] knows them).
pub fn schema(kernel: &str, wanted: &dyn Fn(&str) -> bool) -> Option<Value> {
    let (name, shape) = KERNELS.iter().find(|it| it.0 == kernel)?;
    let head = [("kernel", json!({ "type": "string", "enum": [name] }))];
    Some(match shape {
        Object(table) => object(&head, table),
        OneOf(methods) => one_of(&head, methods, wanted),
        _ => return None, // no kernel is a single value
    })
}

fn object(head: &[(&str, Value)], table: Table) -> Value {
    let fields = head.iter().cloned().chain(table.iter().map(|(name, shape)| (*name, value(shape))));
    let fields: Vec<_> = fields.collect();
    let required: Vec<_> = fields.iter().map(|it| it.0).collect();
    let properties: Map<String, Value> = fields.iter().map(|(name, it)| ((*name).to_owned(), it.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn one_of(head: &[(&str, Value)], methods: Methods, wanted: &dyn Fn(&str) -> bool) -> Value {
    let alternatives = methods.iter().filter(|it| wanted(it.0)).map(|(name, table)| {
        let method = ("method", json!({ "type": "string", "enum": [name] }));
        let head: Vec<_> = head.iter().cloned().chain([method]).collect();
        object(&head, table)
    });
    json!({ "anyOf": alternatives.collect::<Vec<_>>() })
}

fn value(shape: &Shape) -> Value {
    match shape {
        Count => json!({ "type": "integer" }),
        Flag => json!({ "type": "boolean" }),
        Word(words) => json!({ "type": "string", "enum": words }),
        Object(table) => object(&[], table),
        OneOf(methods) => one_of(&[], methods, &|_| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_schema_that_names_its_fields() {
        for (kernel, _) in &KERNELS {
            let text = schema(kernel, &|_| true).unwrap().to_string();
            assert!(text.contains(&format!("\"kernel\":{{\"enum\":[\"{kernel}\"]")), "{text}");
        }
        let attention = schema("gpu-attention", &|it| it == "host-softmax").unwrap();
        assert_eq!(attention["anyOf"].as_array().unwrap().len(), 1);
        assert_eq!(attention["anyOf"][0]["required"], json!(["kernel", "method", "tile-q", "tile-k", "threads"]));
        let mlp = schema("mlp", &|_| true).unwrap();
        assert_eq!(mlp["properties"]["down"]["properties"]["pack-b"]["enum"], json!(["ahead", "during", "never"]));
        assert_eq!(mlp["additionalProperties"], json!(false));
        assert_eq!(schema("conv", &|_| true), None);
    }
}
