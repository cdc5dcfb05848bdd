//! `kforge schema`.

use super::{
    error::{Error, Outcome},
    print,
};
use crate::manifest;

pub fn main() -> Result<Outcome, Error> {
    print::json(&manifest::schema())?;
    Ok(Outcome::Done)
}
