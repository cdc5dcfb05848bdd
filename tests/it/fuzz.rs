//! Replays the corpus of the fuzz targets: inputs that once found something new, or something wrong.

#[path = "../../fuzz/fuzz_targets/inputs.rs"]
mod inputs;

use std::{fs, path::Path};

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in fs::read_dir(&corpus).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 5, "only {count} inputs in {}", corpus.display());
}

#[test]
fn the_manifest_corpus_is_survived() {
    replay("manifest", inputs::manifest);
}

#[test]
fn the_store_corpus_is_survived() {
    replay("store", inputs::store);
}
