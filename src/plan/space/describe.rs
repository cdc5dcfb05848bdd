//! A space as data for a reader who has never seen it: a person, or a language model.

use super::{Knob, Space, Value};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Description {
    /// A schedule is of one of these.
    pub families: Vec<FamilyDescription>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FamilyDescription {
    pub name: String,
    /// What every schedule of the family has, by dotted name: `kernel`, `method`.
    pub fixed: BTreeMap<String, String>,
    /// Points of the family. Not every one is legal: limits on registers, caches or workgroups bind several knobs together.
    pub points: u64,
    pub knobs: Vec<KnobDescription>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KnobDescription {
    /// As in a plan: `up.mr` is the field `mr` of the object `up`.
    pub name: String,
    pub values: Vec<Value>,
    /// What has to be done to a value to have the one in the plan, e.g. ``times `lanes` ``.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where the search is restricted: what the value in the plan must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<Value>>,
}

impl From<&Knob> for KnobDescription {
    fn from(knob: &Knob) -> Self {
        let only = knob.within().map(<[_]>::to_vec);
        Self { name: knob.name(), values: knob.values().to_vec(), rule: knob.rule(), only }
    }
}

impl Space {
    pub fn describe(&self) -> Description {
        let family = |it: &super::Family| FamilyDescription {
            name: it.name().to_owned(),
            fixed: it.fixed().iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            points: u64::try_from(it.len()).unwrap_or(u64::MAX),
            knobs: it.knobs().iter().map(KnobDescription::from).collect(),
        };
        Description { families: self.families().iter().map(family).collect() }
    }
}
