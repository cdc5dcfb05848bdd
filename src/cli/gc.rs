//! `kforge gc`, and the same after a build where the manifest limits the cache.

use super::{
    cache::size,
    error::{Error, Outcome},
    print,
    project::Opened,
};
use crate::{
    build::needs,
    store::gc::{Bounds, Collected, GRACE, Request},
};
use bytesize::ByteSize;
use serde_json::json;
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Never removes what the present manifests need. Without a limit, removes only what no record names, \
                        records that lost a blob, and what crashes left behind."
)]
pub struct Args {
    /// Remove the least recently used until no more than this is left, e.g. `500 MB`; the manifest's `cache.max-size` if not given
    #[arg(long, value_name = "SIZE")]
    max_size: Option<ByteSize>,
    /// Remove what was not used for this long, e.g. `30d` or `12h`
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// Spare what changed within this time: running builds may be about to use it [default: 10m]
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// Say what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let opened = Opened::whole(directory)?;
    let needs = needs::of(&opened.store, &opened.graph);
    let max_bytes = args.max_size.map(|it| it.as_u64()).or(opened.project.cache.max_size);
    let used_since = args.max_age.map(|age| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(age).as_secs()
    });
    let bounds = Bounds { max_bytes, used_since };
    let grace = args.grace.unwrap_or(GRACE);
    let collected = opened.store.collect(&Request { needs: &needs, bounds, grace, dry_run: args.dry_run })?;
    if args.json {
        print::json(&json!({
            "version": 1, "dry-run": args.dry_run, "max-bytes": max_bytes, "removed": {
                "records": collected.records, "blobs": collected.blobs, "out": collected.out, "tmp": collected.tmp,
                "corrupt": collected.corrupt,
            },
            "bytes-before": collected.bytes_before, "bytes-after": collected.bytes_after,
        }))?;
    } else {
        let verb = if args.dry_run { "would remove" } else { "removed" };
        print::out(&format!("{verb} {}; {} left\n", what(&collected), size(collected.bytes_after)))?;
        if let Some(max) = max_bytes.filter(|it| *it < collected.bytes_after) {
            print::warning(&too_much(max, &collected));
        }
    }
    Ok(Outcome::Done)
}

fn what(collected: &Collected) -> String {
    if collected.is_nothing() {
        return "nothing".to_owned();
    }
    let counts = [
        (collected.blobs, "blobs"),
        (collected.out, "files in out/"),
        (collected.tmp, "files in tmp/"),
        (collected.corrupt, "files in corrupt/"),
    ];
    let counts = counts.iter().filter(|it| it.0.files > 0);
    let counts = counts.map(|(count, name)| format!("{} {name} ({})", count.files, size(count.bytes)));
    std::iter::once(format!("{} records", collected.records)).chain(counts).collect::<Vec<_>>().join(", ")
}

fn too_much(max: u64, collected: &Collected) -> String {
    format!(
        "{} are left of at most {}: the rest is needed by the manifests, or was used a moment ago",
        size(collected.bytes_after),
        size(max)
    )
}

/// Collects if the manifest's limit is exceeded. What goes wrong here is no failure of the build.
pub fn after_build(directory: &Path, opened: &Opened) {
    match collect_beyond_limit(directory, opened) {
        Ok(None) => {}
        Ok(Some((max, collected))) if collected.bytes_after > max => print::warning(&too_much(max, &collected)),
        Ok(Some((max, collected))) => {
            print::err(&format!("note: removed {} to keep the cache within {}\n", what(&collected), size(max)));
        }
        Err(error) => print::warning(&format!("the cache cannot be kept within its limit: {error}")),
    }
}

fn collect_beyond_limit(directory: &Path, opened: &Opened) -> Result<Option<(u64, Collected)>, Error> {
    let Some(max) = opened.project.cache.max_size else { return Ok(None) };
    if opened.store.survey()?.bytes() <= max {
        return Ok(None);
    }
    let whole = Opened::whole(directory)?;
    let mut needs = needs::of(&whole.store, &whole.graph);
    // What was just built, also if the manifest was edited meanwhile.
    needs.add(needs::of(&opened.store, &opened.graph));
    let bounds = Bounds { max_bytes: Some(max), used_since: None };
    let request = Request { needs: &needs, bounds, grace: GRACE, dry_run: false };
    Ok(Some((max, whole.store.collect(&request)?)))
}
